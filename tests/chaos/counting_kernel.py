"""A kernel's program that can only count: every cell adds one, and the reply has process and count.

It is a process of its own, which starts in a fifth of the time of an ipykernel and needs a third of its memory.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from tests.support.kernelspecs import write_kernelspec
from tests.support.processes import REPOSITORY
from tests.support.tinykernel import TinyKernel

# What makes an ipykernel do the same.
COUNT = "import os; count = globals().get('count', 0) + 1"
EXPRESSIONS = {"count": "f'{os.getpid()} {count}'"}


class CountingKernel(TinyKernel):
    """Counts its cells, whatever they say."""

    count = 0

    def _handle(self, channel: str, frames: list[bytes]) -> None:
        try:
            super()._handle(channel, frames)
        except (AssertionError, ValueError) as error:  # of a former kernel's client, say, that had this port
            print(f"A message on {channel} was dropped: {error!r}", file=sys.stderr)
            return
        if self.received.pop()["header"]["msg_type"] == "shutdown_request":
            os._exit(0)

    def _execute(self, identities: list[bytes], header: dict[str, Any], content: dict[str, Any]) -> dict[str, Any]:
        self.count += 1
        self._publish("execute_input", {"code": content["code"], "execution_count": self.count}, header)
        value = {"status": "ok", "data": {"text/plain": f"'{os.getpid()} {self.count}'"}, "metadata": {}}
        expressions = dict.fromkeys(content["user_expressions"], value)
        return {"status": "ok", "execution_count": self.count, "payload": [], "user_expressions": expressions}


def write_counting_kernelspec(name: str) -> None:
    """Install this program as a kernelspec."""
    argv = [sys.executable, "-m", __name__, "{connection_file}"]
    write_kernelspec(name, argv=argv, env={"PYTHONPATH": str(REPOSITORY)})


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    connection = json.loads(Path(sys.argv[1]).read_text())
    CountingKernel(connection["key"].encode(), ports=connection).start()
    threading.Event().wait()

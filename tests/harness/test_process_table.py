"""What the chaos run takes for a process of a kernel."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.chaos.process_table import ProcessTable

FORKING = "import os, signal; os.fork() or signal.pause(); print('ready', flush=True); signal.pause()"


def test_what_a_kernel_forks_is_no_second_process_of_it(tmp_path: Path) -> None:
    """Until it becomes another program it has the kernel's command line."""
    argv = [sys.executable, "-c", FORKING, str(tmp_path / "runtime0" / "kernel-1.json")]
    env = {**os.environ, "KERNEL_ID": "1", "KERNEL_USERNAME": "ada"}
    with subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, start_new_session=True) as kernel:
        assert kernel.stdout is not None
        try:
            assert kernel.stdout.readline() == b"ready\n"
            table = ProcessTable(tmp_path)
            table.look()
            assert [life.pid for life in table.of("1")] == [kernel.pid]
        finally:
            os.killpg(kernel.pid, signal.SIGKILL)

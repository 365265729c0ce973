"""Kernels on the gateway's own machine."""

from __future__ import annotations

from typing import Any

from ...core.offload import offload
from ...core.states import Phase
from ...transport.localproc import LocalProcess
from .contract import BaseProcessProxyABC


class LocalProcessProxy(BaseProcessProxyABC):
    """A kernel on the gateway's own machine: the default back end."""

    calls_block = False
    starts_kernel_itself = True

    async def launch_process(self, kernel_cmd: list[str], **kwargs: Any) -> None:
        """Start the kernel as a child process, without waiting for it."""
        await super().launch_process(kernel_cmd, **kwargs)
        await offload(self._start, kernel_cmd, kwargs)
        self.progress.reach(Phase.STARTED)

    def _start(self, kernel_cmd: list[str], kwargs: dict[str, Any]) -> None:
        # All in the thread, so that a launch that is cancelled meanwhile still knows the process, and ends it.
        self.local_proc = self.launch_kernel(kernel_cmd, **kwargs)
        self.pid, self.pgid, self.ip = self.local_proc.pid, self.local_proc.pgid, "127.0.0.1"

    async def wait_for_exit(self) -> int:
        """Wait until the process has ended; returns its exit code."""
        if self.local_proc is None:
            return 0
        return await self.local_proc.wait_for_exit()

    def poll(self) -> Any:
        """Return None while the process lives, else its exit code."""
        return 0 if self.local_proc is None else self.local_proc.poll()

    def get_process_info(self) -> dict[str, Any]:
        """Add the start time, which distinguishes our process from a later one with the same id."""
        info = super().get_process_info()
        if self.local_proc is not None:
            info["start_time"] = self.local_proc.start_time
        return info

    def load_process_info(self, process_info: dict[str, Any]) -> None:
        """Adopt the process if it is still the one that we started."""
        super().load_process_info(process_info)
        self.local_proc = LocalProcess.adopt(
            self.pid, int(process_info.get("start_time") or -1), takes_group=self.starts_kernel_itself
        )

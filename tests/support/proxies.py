"""Process proxies as third parties write them, well-behaved and not; kernelspecs name them by their dotted path."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from enterprise_gateway.core.errors import HostUnreachableError
from enterprise_gateway.core.states import Phase, State
from enterprise_gateway.services.processproxies.distributed import DistributedProcessProxy
from enterprise_gateway.services.processproxies.launchedkernel import LaunchedKernel
from enterprise_gateway.services.processproxies.processproxy import (
    BaseProcessProxyABC,
    ClusterProcessProxy,
    LocalProcessProxy,
    RemoteProcessProxy,
)
from enterprise_gateway.services.processproxies.remnants import Remnant
from enterprise_gateway.transport.localproc import LocalProcess, last_lines
from tests.support.kernelspecs import write_kernelspec


class SlowProxy(LocalProcessProxy):
    """Takes its time before it launches."""

    async def launch_process(self, kernel_cmd: list[str], **kwargs: Any) -> None:
        """Launch after ``seconds`` of the config."""
        await asyncio.sleep(float(self.proxy_config.get("seconds", 30)))
        await super().launch_process(kernel_cmd, **kwargs)


class FailingProxy(LocalProcessProxy):
    """Launches, and then says that it failed."""

    async def launch_process(self, kernel_cmd: list[str], **kwargs: Any) -> None:
        """Start the kernel, then raise as back ends of version 3 do."""
        await super().launch_process(kernel_cmd, **kwargs)
        self.log_and_raise(http_status_code=503, reason="The cluster is on holiday.")


class HelplessProxy(FailingProxy):
    """Fails to launch, and again when it has ended and cleaned up what it had begun."""

    def kill(self) -> bool | None:
        """End the process, then raise."""
        super().kill()
        raise TypeError("The cluster wants no kill.")

    def cleanup(self) -> None:
        """Clean up, then raise."""
        super().cleanup()
        raise TypeError("The cluster wants no cleanup.")


class ThirdPartyProxy(BaseProcessProxyABC):
    """Written against version 3: synchronous verbs, a Popen of its own, async launch_process only."""

    async def launch_process(self, kernel_cmd: list[str], **kwargs: Any) -> None:
        """Start the kernel with subprocess."""
        await super().launch_process(kernel_cmd, **kwargs)
        self.local_proc = subprocess.Popen(kernel_cmd, env=kwargs["env"], start_new_session=True)
        self.pid = self.pgid = self.local_proc.pid
        self.ip = "127.0.0.1"

    def poll(self) -> Any:
        """Return None while the process lives, False otherwise, as version 3 does."""
        return None if self.local_proc is not None and self.local_proc.poll() is None else False

    def wait(self) -> Any:
        """Wait for the process."""
        return self.local_proc.wait()

    def send_signal(self, signum: int) -> bool | None:
        """Signal the process."""
        if self.local_proc.poll() is not None:
            return False
        self.local_proc.send_signal(signum)
        return None

    def kill(self) -> bool | None:
        """Kill the process."""
        if self.local_proc is not None:
            self.local_proc.kill()
            self.local_proc.wait()
        return None


class Steps:
    """Stops at the steps of a kernel's life for which there is a file ``hold-<step>`` in ``steps`` of the config.

    Environment variables in it differ between gateways. On arrival there is a file ``at-<step>``; it goes on when the
    hold is removed.
    """

    proxy_config: dict[str, Any]

    async def pause(self, step: str) -> None:
        """Say that the step is reached, and stay as long as it is held."""
        hold = Path(os.path.expandvars(self.proxy_config["steps"])) / f"hold-{step}"
        if hold.exists():
            hold.with_name(f"at-{step}").touch()
            while hold.exists():
                await asyncio.sleep(0.02)


class SteppingProxy(Steps, LocalProcessProxy):
    """A kernel on this machine."""

    async def launch_process(self, kernel_cmd: list[str], **kwargs: Any) -> None:
        """Stop before and after the process is started."""
        await self.pause("launch")
        await super().launch_process(kernel_cmd, **kwargs)
        await self.pause("launched")

    async def cleanup(self) -> None:  # type: ignore[override]
        """Stop when the process has ended and before what it owned is removed, and after that."""
        await self.pause("ended")
        super().cleanup()
        await self.pause("cleaned")


class SteppingDistributedProxy(Steps, DistributedProcessProxy):
    """A kernel on an SSH host."""

    async def launch_process(self, kernel_cmd: list[str], **kwargs: Any) -> None:
        """Stop before and after the launch."""
        await self.pause("launch")
        await super().launch_process(kernel_cmd, **kwargs)
        await self.pause("launched")

    async def confirm_remote_startup(self) -> None:
        """Stop when the process runs, and nobody has heard of it yet."""
        await self.pause("submitted")
        await super().confirm_remote_startup()

    async def cleanup(self) -> None:  # type: ignore[override]
        """Stop when the process has ended, and after what it owned was removed."""
        await self.pause("ended")
        await asyncio.to_thread(super().cleanup)
        await self.pause("cleaned")


class OldStyleProxy(ThirdPartyProxy):
    """Reads what version 3 offered to back ends, and tells its kernel of it."""

    def __init__(self, kernel_manager: Any, proxy_config: dict[str, Any]) -> None:
        super().__init__(kernel_manager=kernel_manager, proxy_config=proxy_config)
        self.seen = {
            "port_range": kernel_manager.port_range,
            "impersonation_enabled": kernel_manager.impersonation_enabled,
            "response_address": kernel_manager.response_address,
            "public_key": kernel_manager.public_key,
            "authorized_users": sorted(kernel_manager.authorized_users),
            "unauthorized_users": sorted(kernel_manager.unauthorized_users),
            "connection_file": kernel_manager.connection_file,
            "kernel_id": kernel_manager.kernel_id,
            "spec_name": kernel_manager.kernel_spec.display_name,
            "max_kernels": kernel_manager.max_kernels,
            "ports": [self.lower_port, self.upper_port],
            "launch_timeout": self.kernel_launch_timeout,
        }

    async def launch_process(self, kernel_cmd: list[str], **kwargs: Any) -> None:
        """Put what was seen, and the captured headers, into the environment."""
        kwargs["env"]["SEEN"] = json.dumps(self.seen)
        kwargs["env"]["HEADERS"] = json.dumps(kwargs["kernel_headers"])
        await super().launch_process(kernel_cmd, **kwargs)


class ThirdPartyRemoteProxy(RemoteProcessProxy):
    """Written against version 3: a launcher that stays a child of the gateway, and a confirmation loop of its own."""

    async def launch_process(self, kernel_cmd: list[str], **kwargs: Any) -> None:
        """Start the launcher on this machine, as if it were another."""
        await super().launch_process(kernel_cmd, **kwargs)
        self.local_proc = self.launch_kernel(kernel_cmd, **kwargs)
        self.pid = self.local_proc.pid
        self.ip = self.assigned_ip = self.assigned_host = "127.0.0.1"
        await self.confirm_remote_startup()

    async def confirm_remote_startup(self) -> None:
        """Poll until the launcher has reported, has ended badly or is out of time."""
        ready_to_connect = False
        while not ready_to_connect:
            await self.handle_timeout()
            self.detect_launch_failure()
            ready_to_connect = await self.receive_connection_info()


class ScriptProxy(RemoteProcessProxy):
    """Starts a script on this machine, which starts the launcher; written with nothing but the base's means."""

    async def launch_process(self, kernel_cmd: list[str], **kwargs: Any) -> None:
        """Start the script and wait for the launcher's response."""
        await super().launch_process(kernel_cmd, **kwargs)
        self.assigned_ip = "127.0.0.1"
        self.local_proc = await asyncio.to_thread(self.launch_kernel, kernel_cmd, **kwargs)
        await self.confirm_remote_startup()


class JobsProxy(ClusterProcessProxy):
    """A cluster whose jobs are processes of this machine, started by a script that ends at once; asked, not watched.

    It tells of a job by a file with its process id. ``place_after`` in the config: seconds until it says where a
    kernel is. While there is a file ``away`` it cannot be asked.
    """

    remembered = ("job_file",)

    def __init__(self, kernel_manager: LaunchedKernel, proxy_config: dict[str, Any] | None) -> None:
        super().__init__(kernel_manager, proxy_config)
        self.job_file = str(Path(kernel_manager.connection_file).with_suffix(".job"))

    def submit(self, kernel_cmd: list[str], **kwargs: Any) -> None:
        """Start the script."""
        script = 'unset JPY_PARENT_PID; setsid "$@" & echo $! > "$0.new" && mv "$0.new" "$0"'
        self.local_proc = self.launch_kernel(["/bin/sh", "-c", script, self.job_file, *kernel_cmd], **kwargs)

    def probe(self) -> State | None:
        """Look for the process; fail when it is there and ``blind`` is set."""
        if Path(self.job_file).with_name("away").exists():
            raise HostUnreachableError("The cluster cannot be asked.")
        try:
            pid = int(Path(self.job_file).read_text())
        except FileNotFoundError:
            return None
        if self.proxy_config.get("blind"):
            raise ValueError("no state has the name PENDING")
        process = LocalProcess.find(pid)
        if process is None or process.poll() is not None:
            return State(Phase.ENDED, host="jobs", reason="its job is over")
        is_placed = time.time() > self.start_time + float(self.proxy_config.get("place_after", 0))
        return State(Phase.STARTED, host="jobs", ip="127.0.0.1" if is_placed else "")

    def signal(self, signum: int) -> bool:
        """Signal the job."""
        try:
            os.killpg(int(Path(self.job_file).read_text()), signum)
        except (FileNotFoundError, ProcessLookupError):
            return False
        return True

    def stop(self) -> None:
        """Kill the job and forget it."""
        self.signal(signal.SIGKILL)
        Path(self.job_file).unlink(missing_ok=True)

    def describe(self) -> str:
        """Return what the job has printed; fail when ``speechless`` is set."""
        if self.proxy_config.get("speechless"):
            raise KeyError("a defect of the back end")
        return last_lines(self.output_file)


class UnsureProxy(ThirdPartyProxy):
    """Fails at its verbs: ``poll`` the first ``failures`` times, the others when ``helpless`` is set."""

    def poll(self) -> Any:
        """Raise as a client library does whose service does not answer."""
        failures = self.proxy_config.get("failures", 0)
        if failures > 0:
            self.proxy_config["failures"] = failures - 1
            raise RuntimeError("The cluster does not answer.")
        return super().poll()

    def send_signal(self, signum: int) -> bool | None:
        """Raise, or signal the process."""
        if self.proxy_config.get("helpless"):
            raise RuntimeError("The cluster takes no signals.")
        return super().send_signal(signum)

    def terminate(self) -> bool | None:
        """Raise, or ask the process to end."""
        return self.send_signal(15)

    def cleanup(self) -> None:
        """Clean up, and raise."""
        super().cleanup()
        if self.proxy_config.get("helpless"):
            raise RuntimeError("The cluster cannot be tidied up.")


class CarelessProxy(ThirdPartyProxy):
    """Has plain verbs that take their time, and would not stand two threads at once.

    While ``go_on`` is not set they hang.
    """

    go_on = threading.Event()
    go_on.set()
    inside = 0
    most_inside = 0
    polls = 0

    def _take_time(self) -> None:
        cls = type(self)
        cls.inside += 1
        cls.most_inside = max(cls.most_inside, cls.inside)
        time.sleep(0.2)
        cls.go_on.wait()
        cls.inside -= 1

    def poll(self) -> Any:
        """Look at the process, at leisure."""
        type(self).polls += 1
        self._take_time()
        return super().poll()

    def send_signal(self, signum: int) -> bool | None:
        """Signal the process, at leisure."""
        self._take_time()
        return super().send_signal(signum)

    def kill(self) -> bool | None:
        """Kill the process, at leisure."""
        self._take_time()
        return super().kill()

    def cleanup(self) -> None:
        """Clean up, at leisure."""
        self._take_time()
        super().cleanup()

    def get_process_info(self) -> dict[str, Any]:
        """Tell, at leisure."""
        self._take_time()
        return super().get_process_info()


class ClingingProxy(ScriptProxy):
    """Cannot detach from its kernel."""

    def disconnect(self) -> None:
        """Raise as a client library does whose service has changed."""
        raise RuntimeError("I hold on.")


class LitteringProxy(ThirdPartyProxy):
    """Knows of one thing that was left behind and cannot remove it, and of no others."""

    @classmethod
    def find_remnants(cls, *_args: Any) -> Iterator[Remnant]:
        """Find one thing, and raise as a client library does whose service does not answer."""
        yield Remnant("litter", "job 17 of the cluster", cls._remove)
        raise RuntimeError("The cluster does not answer.")

    @staticmethod
    def _remove() -> None:
        raise TypeError("The cluster wants a number.")


class FussyProxy(LocalProcessProxy):
    """Raises at each verb for which there is a file ``fails-<verb>`` in ``folder`` of the config."""

    def _check(self, verb: str) -> None:
        if (Path(self.proxy_config["folder"]) / f"fails-{verb}").exists():
            raise TypeError(f"The cluster wants no {verb}.")

    def load_process_info(self, process_info: dict[str, Any]) -> None:
        """Raise, or take the process over."""
        self._check("load")
        super().load_process_info(process_info)

    def poll(self) -> Any:
        """Raise, or look at the process."""
        self._check("poll")
        return super().poll()

    def send_signal(self, signum: int) -> bool | None:
        """Raise, or signal the process."""
        self._check("signal")
        return super().send_signal(signum)

    def kill(self) -> bool | None:
        """Raise, or kill the process."""
        self._check("kill")
        return super().kill()

    def cleanup(self) -> None:
        """Raise, or clean up."""
        self._check("cleanup")
        super().cleanup()


def write_fussy_kernelspec(name: str, folder: Path, *verbs: str) -> list[Path]:
    """Write a kernelspec for :class:`FussyProxy`; return the files that, once there, make ``verbs`` fail."""
    (folder / name).mkdir()
    stanza = {"class_name": f"{__name__}.FussyProxy", "config": {"folder": str(folder / name)}}
    write_kernelspec(name, metadata={"process_proxy": stanza})
    return [folder / name / f"fails-{verb}" for verb in verbs]


class StuckProxy(LocalProcessProxy):
    """Hangs in a thread as on a file server that is away: until there is a writer at the ``pipe`` of its config.

    With ``threads`` set to ``own`` it is a thread that it has made itself.
    """

    async def launch_process(self, kernel_cmd: list[str], **kwargs: Any) -> None:
        """Launch by threads."""
        if self.proxy_config.get("threads") == "own":
            await asyncio.to_thread(self._hang)
        await super().launch_process(kernel_cmd, **kwargs)

    def launch_kernel(self, cmd: list[str], **kwargs: Any) -> LocalProcess:
        """Hang, then start the process."""
        self._hang()
        return super().launch_kernel(cmd, **kwargs)

    def _hang(self) -> None:
        with open(self.proxy_config["pipe"], "rb"):
            pass

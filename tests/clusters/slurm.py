"""A private Slurm cluster of one node on loopback, with everything that it writes in one temporary directory.

By hand::

    python -m tests.clusters.slurm      # it is up until Enter is pressed; prints the settings
"""

from __future__ import annotations

import os
import pwd
import re
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.support.requirements import found

SECONDS_TO_START = 30
# Jobs start when they are submitted, are killed a second after they were asked to end, and are known for a while after
# their end. Without cgroups and accounting the daemons need no rights but those of their user.
_CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1,batch_sched_delay=0,bf_interval=1
ReturnToService=2
KillWait=1
MinJobAge=60
MessageTimeout=5
NodeName={host} NodeAddr=127.0.0.1 CPUs=64 RealMemory=1000 State=UNKNOWN
PartitionName=kernels Nodes=ALL Default=YES MaxTime=60 State=UP
PartitionName=closed Nodes=ALL State=DOWN
"""


class SlurmCluster:
    """munged, slurmctld and slurmd, run by the user who runs the tests; jobs are that user's."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="eg-slurm-"))
        self.folder.chmod(0o755)  # munged wants its socket to be reachable
        self.controller_port = _free_port()
        self._node_port = _free_port()
        self._processes: list[subprocess.Popen[bytes]] = []
        for name in ("state", "spool"):
            (self.folder / name).mkdir()
        (self.folder / "munge.key").write_bytes(secrets.token_bytes(128))
        (self.folder / "munge.key").chmod(0o600)
        self.configuration = self.configured("slurm.conf", self.controller_port)

    def configured(self, name: str, controller_port: int) -> Path:
        """Write a configuration that has the controller at ``controller_port``; return its path."""
        path = self.folder / name
        path.write_text(
            _CONFIGURATION.format(
                host=socket.gethostname().partition(".")[0],
                user=pwd.getpwuid(os.geteuid()).pw_name,
                folder=self.folder,
                controller_port=controller_port,
                node_port=self._node_port,
            )
        )
        return path

    def start(self) -> None:
        """Start the daemons and wait until the node takes jobs."""
        munge = {"key-file": "munge.key", "pid-file": "munged.pid", "seed-file": "munged.seed", "log-file": "munge.log"}
        options = [f"--{option}={self.folder / file}" for option, file in munge.items()]
        self._run("munged", "--foreground", "--force", f"--socket={self.folder / 'munge.socket'}", *options)
        self._wait_for((self.folder / "munge.socket").exists)
        for daemon in ("slurmctld", "slurmd"):
            self._run(daemon, "-D", "-f", str(self.configuration))
        self._wait_for(lambda: self._answer("sinfo", "--noheader", "--format=%T").strip() == "idle")

    def call(self, program: str, *arguments: str) -> str:
        """Run one of Slurm's commands and return what it printed."""
        result = self._command(program, *arguments)
        if result.returncode:
            raise RuntimeError(f"{program} {' '.join(arguments)}: {result.stderr}")
        return result.stdout

    def queries(self) -> int:
        """Return how often the controller was asked for lists of jobs."""
        counts = re.findall(r"REQUEST_JOB_INFO +\( *\d+\) +count:(\d+)", self.call("sdiag"))
        return int(counts[0]) if counts else 0

    def job_of(self, kernel_id: str) -> str:
        """Return the number of the job that is a kernel; empty when there is none that has not ended."""
        return self.call("squeue", "--noheader", f"--name={kernel_id}", "--format=%i").strip()

    def remove(self) -> None:
        """End all jobs and the daemons, and delete what they wrote."""
        self._command("scancel", "--quiet", "--me")
        with suppress(RuntimeError):
            self._wait_for(lambda: not self._answer("squeue", "--noheader"))
        for process in reversed(self._processes):
            process.send_signal(signal.SIGTERM)
        for process in self._processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        shutil.rmtree(self.folder)

    def _command(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [found(program), *arguments],
            env={**os.environ, "SLURM_CONF": str(self.configuration)},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )

    def _answer(self, program: str, *arguments: str) -> str:
        return self._command(program, *arguments).stdout

    def _run(self, daemon: str, *arguments: str) -> None:
        with (self.folder / "output.log").open("a") as log:
            process = subprocess.Popen(
                [found(daemon), *arguments], stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, cwd="/"
            )
        self._processes.append(process)

    def _wait_for(self, condition: Callable[[], bool]) -> None:
        end = time.monotonic() + SECONDS_TO_START
        while not condition():
            if time.monotonic() > end or any(process.poll() is not None for process in self._processes):
                raise RuntimeError("Slurm: " + "\n".join(path.read_text() for path in self.folder.glob("*.log")))
            time.sleep(0.05)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def slurm_cluster() -> Iterator[SlurmCluster]:
    """Start a cluster for the block."""
    cluster = SlurmCluster()
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.remove()


if __name__ == "__main__":
    with slurm_cluster() as by_hand:
        print(f"export SLURM_CONF={by_hand.configuration}")
        with suppress(EOFError):
            input("Enter ends it. ")

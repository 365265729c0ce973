"""Kernels as batch jobs of Slurm."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import socket
import subprocess
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from contextlib import suppress
from pathlib import Path
from typing import Any

from enterprise_gateway.core.errors import HostUnreachableError, KernelLaunchError
from enterprise_gateway.core.states import Phase, State
from enterprise_gateway.drivers.watch import StateWatch
from enterprise_gateway.services.processproxies.processproxy import ClusterProcessProxy
from enterprise_gateway.services.processproxies.shared import gateway_environment
from enterprise_gateway.services.processproxies.watched import Watched
from enterprise_gateway.transport.localproc import last_lines

QUESTION = ("--me", "--states=all", "--noheader", "--Format=jobid:|,state:|,reason:|,exit_code:|,batchhost:|")
PHASES = {"PENDING": Phase.QUEUED, "CONFIGURING": Phase.SCHEDULED}
ALIVE = ("RUNNING", "SUSPENDED", "STOPPED", "COMPLETING")  # completing: what it has started is being ended


class Slurm:
    """One Slurm cluster: what all its kernels share."""

    def __init__(self, configuration: str) -> None:
        self.environment = {"SLURM_CONF": configuration} if configuration else {}
        self.addresses: dict[str, str] = {}  # of the nodes, by their names
        self.watch = StateWatch("slurm", self.states, interval=3, eager_interval=0.5)

    def close(self) -> None:
        """Watch no more; called when the gateway ends."""
        self.watch.close()

    def run(self, *command: str, env: Mapping[str, str] | None = None, **options: Any) -> str:
        """Run one of Slurm's commands and return what it prints."""
        env = {**(gateway_environment() if env is None else env), **self.environment}
        if (program := shutil.which(command[0])) is None:
            raise KernelLaunchError(f"{command[0]} is not installed on the gateway's host; kernels on Slurm need it.")
        try:
            done = subprocess.run(
                [program, *command[1:]], env=env, text=True, capture_output=True, timeout=30, check=False, **options
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise HostUnreachableError(f"Slurm could not be asked: {error}.") from error
        if done.returncode:
            said = done.stderr.strip().rpartition("\n")[2]
            kind = HostUnreachableError if "Unable to contact" in said else KernelLaunchError
            raise kind(f"Slurm did not do what it was asked: {said}.")
        return str(done.stdout)

    def read_addresses(self) -> dict[str, str]:
        """Return the addresses of all nodes whose names can be resolved."""
        nodes = self.run("scontrol", "show", "node", "--oneliner")
        for name, address in re.findall(r"^NodeName=(\S+) .*?\bNodeAddr=(\S+)", nodes, re.MULTILINE):
            with suppress(OSError):
                self.addresses[name] = socket.gethostbyname(address)
        return self.addresses

    def states(self, jobs: AbstractSet[str]) -> dict[str, State]:
        """Return the states of jobs, by one question for all of them."""
        lines = [line.split("|") for line in self.run("squeue", *QUESTION).splitlines()]
        return {job: self._state(job, *fields[:4]) for job, *fields in lines if job in jobs}

    def _state(self, job: str, word: str, reason: str, status: str, node: str) -> State:
        reason = f"Slurm job {job} is {word}" + (f": {reason}" if reason != "None" else "")
        if word in PHASES:
            return State(PHASES[word], reason=reason)
        if word not in ALIVE:
            by_itself = word in ("COMPLETED", "FAILED")
            return State(Phase.ENDED, node, "", reason, os.waitstatus_to_exitcode(int(status)) if by_itself else None)
        address = self.addresses.get(node) or self.read_addresses().get(node, "")
        return State(Phase.STARTED, node, address, reason if word != "RUNNING" else "")


class SlurmProcessProxy(ClusterProcessProxy):
    """A kernel that is a batch job.

    ``config`` may have: ``partition``; ``sbatch_options``, a list; ``log_dir``, a folder that gateway and nodes share,
    by default one in the home directory; ``slurm_conf``, where the gateway's ``SLURM_CONF`` is not the right one.
    """

    remembered = ("job",)
    job = ""

    @property
    def slurm(self) -> Slurm:
        """The cluster."""
        configuration = str(self.proxy_config.get("slurm_conf") or gateway_environment().get("SLURM_CONF", ""))
        return self.kernel_manager.resources.cluster(("slurm", configuration), lambda: Slurm(configuration))

    @property
    def log_file(self) -> Path:
        """Where the job's output goes."""
        return Path(self.proxy_config.get("log_dir") or "~/.slurm-kernels").expanduser() / f"{self.kernel_id}.log"

    def submit(self, kernel_cmd: list[str], **kwargs: Any) -> None:
        """Submit the job: the script on standard input, and what is secret in the environment, which it inherits."""
        self.restrict_reports("the nodes of Slurm", self.slurm.read_addresses().values())
        self.log_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        options = ["--export=ALL", "--no-requeue", f"--job-name={self.kernel_id}", f"--output={self.log_file}"]
        if partition := self.proxy_config.get("partition"):
            options.append(f"--partition={partition}")
        options += self.proxy_config.get("sbatch_options", ())
        script = f"#!/bin/sh\nexec {shlex.join(kernel_cmd)}\n"
        where = {"env": kwargs["env"], "cwd": kwargs.get("cwd")}
        self.job = self.slurm.run("sbatch", "--parsable", *options, input=script, **where).strip()

    def probe(self) -> State | None:
        """Ask for the state of the job."""
        return self.slurm.states({self.job}).get(self.job)

    @property
    def watched(self) -> Watched:
        """The one table of all jobs; sbatch has returned, so the job is there or gone."""
        return Watched(self.slurm.watch, self.job, exists=True)

    def signal(self, signum: int) -> bool:
        """Signal the launcher and what it has started, if the job runs: else scancel would wait until it does."""
        state = self.probe()
        if state is None or state.phase is not Phase.STARTED:
            return False
        self.slurm.run("scancel", "--full", f"--signal={signum}", self.job)
        return True

    def stop(self) -> None:
        """Cancel the job; by its name where sbatch has not told its number."""
        self.slurm.run("scancel", "--quiet", *([self.job] if self.job else ["--me", f"--name={self.kernel_id}"]))

    def describe(self) -> str:
        """Return why the job waits, and the end of its log."""
        waits = self.state.reason if self.state is not None and not self.state.has_ended else ""
        return " ".join(part for part in (waits and f"{waits}.", last_lines(self.log_file)) if part)

"""The back ends that the contract is checked with, each with what a gateway needs to use it."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.kernelspecs import PYTHON_ARGV, write_kernelspec

REPOSITORY = Path(__file__).parents[2]
LAUNCHER = REPOSITORY / "etc/kernel-launchers/python/scripts/launch_ipykernel.py"
BAD_LAUNCHER = REPOSITORY / "tests/support/bad_launcher.py"
PROXIES = "enterprise_gateway.services.processproxies"
LAUNCHER_OPTIONS = [
    "--RemoteProcessProxy.kernel-id",
    "{kernel_id}",
    "--RemoteProcessProxy.response-address",
    "{response_address}",
    "--RemoteProcessProxy.public-key",
    "{public_key}",
    "--RemoteProcessProxy.port-range",
    "{port_range}",
    "--RemoteProcessProxy.spark-context-initialization-mode",
    "none",
]


@dataclass(frozen=True)
class Backend:
    """One back end; ``is_remote`` ones have launchers that report."""

    name: str
    proxy: str
    is_remote: bool = False
    config: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)

    def kernelspec(self, argv: list[str] | None = None, env: dict[str, str] | None = None, **config: Any) -> str:
        """Write a kernelspec for this back end and return its name."""
        launch = argv or ([sys.executable, str(LAUNCHER), *LAUNCHER_OPTIONS] if self.is_remote else list(PYTHON_ARGV))
        stanza = {"class_name": self.proxy, "config": {**self.config, **config}}
        write_kernelspec(self.name, argv=launch, env=env or {}, metadata={"process_proxy": stanza})
        return self.name

    def bad_kernelspec(self, mode: str, **config: Any) -> str:
        """Write a kernelspec whose launcher misbehaves; for remote back ends."""
        argv = [sys.executable, str(BAD_LAUNCHER), mode, *LAUNCHER_OPTIONS]
        return self.kernelspec(argv, {"TMPDIR": tempfile.gettempdir()}, **{"payload_version": 1, **config})


LOCAL = Backend("local", f"{PROXIES}.processproxy.LocalProcessProxy")
THIRD_PARTY = Backend("thirdparty", "tests.support.proxies.ThirdPartyProxy")
THIRD_PARTY_REMOTE = Backend(
    "thirdparty-remote",
    "tests.support.proxies.ThirdPartyRemoteProxy",
    is_remote=True,
    environment={"EG_RESPONSE_IP": "127.0.0.1"},
)
JOBS = Backend(
    "jobs",
    "tests.support.proxies.JobsProxy",
    is_remote=True,
    config={"payload_version": 2},
    environment={"EG_RESPONSE_IP": "127.0.0.1"},
)
DISTRIBUTED_HERE = Backend(
    "distributed-here",
    f"{PROXIES}.distributed.DistributedProcessProxy",
    is_remote=True,
    config={"remote_hosts": "127.0.0.1", "payload_version": 2},
    environment={"EG_RESPONSE_IP": "127.0.0.1"},
)


def distributed_on(hosts: str, environment: Mapping[str, str]) -> Backend:
    """Return the back end of SSH hosts."""
    return Backend(
        "distributed-ssh",
        f"{PROXIES}.distributed.DistributedProcessProxy",
        is_remote=True,
        config={"remote_hosts": hosts, "payload_version": 2},
        environment=environment,
    )


def slurm_with(configuration: Path) -> Backend:
    """Return the back end of the documentation's example, on the cluster of a slurm.conf."""
    return Backend(
        "slurm",
        "slurm_proxy.SlurmProcessProxy",
        is_remote=True,
        config={"slurm_conf": str(configuration), "payload_version": 2},
        environment={"EG_RESPONSE_IP": "127.0.0.1"},
    )

"""The back ends as a parameter: every claim of this directory is checked with each of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.clusters.slurm import SlurmCluster, slurm_cluster
from tests.support import requirements

from .backends import (
    DISTRIBUTED_HERE,
    JOBS,
    LOCAL,
    REPOSITORY,
    THIRD_PARTY,
    THIRD_PARTY_REMOTE,
    Backend,
    distributed_on,
    slurm_with,
)

HERE = {
    "local": LOCAL,
    "third-party": THIRD_PARTY,
    "third-party-remote": THIRD_PARTY_REMOTE,
    "jobs": JOBS,
    "distributed-here": DISTRIBUTED_HERE,
}
ON_HOSTS = [pytest.param("distributed-ssh", marks=pytest.mark.ssh)]
EVERY = [*HERE, *ON_HOSTS, pytest.param("slurm", marks=pytest.mark.slurm)]
REMOTE = EVERY[2:]


@pytest.fixture(scope="session", autouse=True)
def _clusters_before_any_test(request: pytest.FixtureRequest) -> None:
    """Start the clusters before a test's remnants are looked for: they do not belong to the first test."""
    for suite, cluster in {"ssh": "lab", "slurm": "slurm"}.items():
        if not requirements.missing(suite):
            request.getfixturevalue(cluster)


@pytest.fixture(scope="session")
def slurm() -> Iterator[SlurmCluster]:
    """Run a Slurm cluster."""
    requirements.skip_without("slurm")
    with slurm_cluster() as cluster:
        yield cluster


@pytest.fixture
def slurm_backend(slurm: SlurmCluster, monkeypatch: pytest.MonkeyPatch) -> Backend:
    """The documentation's example as a back end."""
    monkeypatch.syspath_prepend(REPOSITORY / "docs/developers")
    return slurm_with(slurm.configuration)


@pytest.fixture
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Backend:
    """One back end, with the gateway's environment set for it."""
    if request.param == "distributed-ssh":
        lab = request.getfixturevalue("lab")
        chosen = distributed_on(",".join(host.address for host in lab.hosts), lab.environment())
    elif request.param == "slurm":
        chosen = request.getfixturevalue("slurm_backend")
    else:
        chosen = HERE[request.param]
    for name, value in chosen.environment.items():
        monkeypatch.setenv(name, value)
    return chosen


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test with every back end, with the remote ones if it is about launchers, with SSH hosts if about them."""
    if "backend" in metafunc.fixturenames:
        about_launchers = metafunc.definition.get_closest_marker("launchers")
        chosen = ON_HOSTS if "lab" in metafunc.fixturenames else REMOTE if about_launchers else EVERY
        metafunc.parametrize("backend", chosen, indirect=True)

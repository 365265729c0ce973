"""The back ends as a parameter: every claim of this directory is checked with each of them."""

from __future__ import annotations

import pytest

from tests.support import requirements

from .backends import DISTRIBUTED_HERE, JOBS, LOCAL, THIRD_PARTY, THIRD_PARTY_REMOTE, Backend, distributed_on

HERE = {
    "local": LOCAL,
    "third-party": THIRD_PARTY,
    "third-party-remote": THIRD_PARTY_REMOTE,
    "jobs": JOBS,
    "distributed-here": DISTRIBUTED_HERE,
}
EVERY = [*HERE, pytest.param("distributed-ssh", marks=pytest.mark.ssh)]
REMOTE = EVERY[2:]
ON_HOSTS = EVERY[-1:]


@pytest.fixture(scope="session", autouse=True)
def _hosts_before_any_test(request: pytest.FixtureRequest) -> None:
    """Bring the SSH hosts up before a test's leftovers are looked for: they are not the first test's."""
    if not requirements.missing("ssh"):
        request.getfixturevalue("lab")


@pytest.fixture
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Backend:
    """One back end, with the gateway's environment set for it."""
    if request.param == "distributed-ssh":
        lab = request.getfixturevalue("lab")
        chosen = distributed_on(",".join(host.address for host in lab.hosts), lab.environment())
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

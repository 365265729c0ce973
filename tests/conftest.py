"""How every test of the project runs: on a loop of its own, in a clean environment, leaving nothing behind.

A test fails when the event loop was held for more than 50 ms, when a task, thread, descriptor or process stays behind,
when the gateway logged a warning that the test did not expect, and when it changed the environment.

* ``async def`` tests, and async generator fixtures of function scope, run on one fresh loop per test;
* ``expect_log(pattern)`` is the context manager for a warning that belongs there;
* :func:`tests.support.loops.loop_may_be_held` is the one for the test's own heavy lifting on the loop.
"""

from __future__ import annotations

import functools
import gc
import inspect
import logging
import os
import re
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import zmq

from tests.clusters import ssh_hosts
from tests.support import requirements
from tests.support.leaks import Snapshot, leaks_since
from tests.support.logs import LogWatch
from tests.support.loops import LoopRunner

ExpectLog = Callable[..., AbstractContextManager[list[logging.LogRecord]]]

_FOREIGN_VARIABLES = re.compile(r"(EG|KG|KERNEL|JUPYTER|JPY|IPYTHON)_|IPYTHONDIR$|KUBECONFIG$|DOCKER_HOST$")
_UNSTABLE_VARIABLES = {"PYTEST_CURRENT_TEST"}
_call_failed = pytest.StashKey[bool]()


def pytest_collection_finish() -> None:
    """Keep what was imported out of later garbage collections: they would hold the loop.

    And start what lives as long as the process once it is needed: pyzmq's thread for what is sent without a copy.
    """
    zmq.Frame(b"", copy=False)
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test that is marked as needing a program which this machine does not have."""
    needed = [str(name) for marker in item.iter_markers("needs") for name in marker.args]
    requirements.skip_without(*(suite for suite in requirements.SUITES if item.get_closest_marker(suite)), *needed)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> Generator[None, None, None]:
    """End with one line that says what to install for the tests that were skipped."""
    if hasattr(session.config, "workeroutput"):  # this is a worker of pytest-xdist
        session.config.workeroutput["wanted"] = requirements.wanted()
    yield
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None and (line := requirements.summary()):
        reporter.write_line(line, yellow=True)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take over what a worker's tests were skipped for."""
    requirements.want(getattr(node, "workeroutput", {}).get("wanted", ()))


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run ``async def`` tests."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    runner: LoopRunner = pyfuncitem.funcargs["_loop_runner"]
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    runner.run(pyfuncitem.obj(**arguments))
    return True


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest) -> None:
    """Let async generator fixtures run on the loop of the test that asked for them."""
    function = getattr(fixturedef.func, "async_function", fixturedef.func)
    if inspect.isasyncgenfunction(function):
        assert fixturedef.scope == "function", f"{fixturedef.argname}: a loop lives as long as one test"
        fixturedef.func = _on_loop(function, request.getfixturevalue("_loop_runner"))  # type: ignore[misc]


def _on_loop(function: Callable[..., Any], runner: LoopRunner) -> Callable[..., Iterator[Any]]:
    @functools.wraps(function)
    def fixture(**arguments: Any) -> Iterator[Any]:
        generator = function(**arguments)
        yield runner.run(anext(generator))
        assert runner.run(anext(generator, fixture)) is fixture, "an async fixture yields once"

    fixture.async_function = function  # type: ignore[attr-defined]
    return fixture


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Note failures for the leak check; in CI a skip is a failure, because a skipped suite proves nothing."""
    report = yield
    if report.failed:
        item.stash[_call_failed] = True
    if _in_ci() and report.skipped and not hasattr(report, "wasxfail") and isinstance(report.longrepr, tuple):
        reason = report.longrepr[2]
        if "not applicable" not in reason:
            report.outcome, report.longrepr = "failed", f"skipped in CI, where everything must run: {reason}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Do the same for modules that skip themselves."""
    report = yield
    if _in_ci() and report.skipped:
        report.outcome, report.longrepr = "failed", f"{collector.nodeid} skipped itself in CI: {report.longrepr}"
    return report


def _in_ci() -> bool:
    return os.environ.get("CI", "").lower() in {"1", "true"}


@pytest.fixture(autouse=True)
def clean_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Run the test with an own home and Jupyter directories, and with none of the developer's settings.

    Yields the directory that holds them: ``home``, ``config``, ``data`` and ``runtime``.
    """
    saved = dict(os.environ)
    root = tmp_path_factory.mktemp("env", numbered=True)
    for name in [name for name in os.environ if _FOREIGN_VARIABLES.match(name)]:
        del os.environ[name]
    directories = {"HOME": "home", "JUPYTER_CONFIG_DIR": "config", "JUPYTER_DATA_DIR": "data"}
    directories["JUPYTER_RUNTIME_DIR"] = "runtime"
    for variable, directory in directories.items():
        (root / directory).mkdir(mode=0o700)
        os.environ[variable] = str(root / directory)
    # CI runs as root, whom the gateway refuses kernels by default; tests of that rule take this away again
    os.environ["EG_UNAUTHORIZED_USERS"] = ""
    before = _stable_environment()
    try:
        yield root
        changed = {name for name, _ in before.items() ^ _stable_environment().items()}
    finally:
        os.environ.clear()
        os.environ.update(saved)
    assert not changed, f"the test changed the environment: {sorted(changed)}"


def _stable_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in _UNSTABLE_VARIABLES}


@pytest.fixture(autouse=True)
def _log_watch(clean_environment: Path, request: pytest.FixtureRequest) -> Iterator[LogWatch]:
    watch = LogWatch()
    with watch.listening():
        yield watch
    _fail_if(watch.sentences(), request)


@pytest.fixture
def expect_log(_log_watch: LogWatch) -> ExpectLog:
    """Return the context manager that allows a warning: ``with expect_log("regular expression"): …``."""
    return _log_watch.expect


@pytest.fixture(autouse=True)
def _nothing_left_behind(
    _log_watch: LogWatch, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[None]:
    root = tmp_path_factory.getbasetemp()
    before = Snapshot.take(root)
    yield
    _fail_if(leaks_since(before, root), request)


@pytest.fixture(autouse=True)
def _loop_runner(_nothing_left_behind: None, request: pytest.FixtureRequest) -> Iterator[LoopRunner]:
    runner = LoopRunner()
    yield runner
    _fail_if(runner.close(), request)


def _fail_if(problems: list[str], request: pytest.FixtureRequest) -> None:
    """Fail a test that passed so far; one that failed already was cut short and may well leave things behind."""
    if problems and not request.node.stash.get(_call_failed, False):
        pytest.fail("\n".join(problems), pytrace=False)


@pytest.fixture(scope="session")
def lab() -> Iterator[ssh_hosts.HostLab]:
    """Bring up three real SSH hosts; tests leave them as they found them."""
    requirements.skip_without("ssh")
    with ssh_hosts.host_lab() as lab:
        yield lab


@pytest.fixture(scope="session")
def local_sshd() -> Iterator[ssh_hosts.LocalServer]:
    """Run an SSH server on 127.0.0.1 for the user who runs the tests."""
    requirements.skip_without("sshd", "ssh-keygen", "ps")
    with ssh_hosts.local_server() as server:
        yield server

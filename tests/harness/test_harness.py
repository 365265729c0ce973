"""The checks of tests/conftest.py are checked themselves, each with a test suite of its own that breaks one rule."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


def run_suite(directory: Path, body: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run ``body`` as a test module under this repository's configuration."""
    directory.joinpath("test_it.py").write_text("from __future__ import annotations\n" + body)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.conftest", "-c", REPOSITORY / "pyproject.toml"]
    return subprocess.run(
        [
            *command,
            f"--rootdir={REPOSITORY}",
            f"--confcutdir={directory}",
            f"--basetemp={directory / 'tmp'}",
            directory / "test_it.py",
        ],
        cwd=REPOSITORY,
        env={"PATH": "/usr/bin:/bin", **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


GOOD = {
    "an async test": "async def test():\n    import asyncio\n    await asyncio.sleep(0.1)\n",
    "a test that waits in a thread": """
import asyncio, time
async def test(): await asyncio.to_thread(time.sleep, 0.2)
""",
    "an async fixture": """
import asyncio, pytest
@pytest.fixture
async def server():
    server = await asyncio.start_server(lambda r, w: w.close(), "127.0.0.1", 0)
    async with server:
        yield server
@pytest.mark.parametrize("n", [1, 2])
async def test(server, n):
    assert asyncio.get_running_loop() is server.get_loop()
""",
    "a held loop with a reason": """
import time
from tests.support.loops import loop_may_be_held
async def test():
    with loop_may_be_held("to see that it can be allowed"):
        time.sleep(0.2)
""",
    "a machine that stands still": """
import asyncio, os, signal, subprocess
async def test():
    go_on = "for pause in 0.3 1; do sleep $pause; kill -CONT $PPID; done"
    other = await asyncio.to_thread(subprocess.Popen, ["sh", "-c", go_on])
    await asyncio.sleep(0)
    os.kill(os.getpid(), signal.SIGSTOP)
    await asyncio.sleep(0)
    await asyncio.to_thread(other.wait)
""",
    "an expected warning": """
import logging
async def test(expect_log):
    with expect_log("some.*thing") as records:
        logging.getLogger("enterprise_gateway.core").warning("some%s", "thing")
    assert len(records) == 1
""",
    "a clean environment": """
import os
def test(clean_environment):
    assert not {"EG_PORT", "KERNEL_USERNAME"} & set(os.environ)
    assert os.environ["HOME"].startswith(str(clean_environment))
""",
}

BAD = {
    "asleep on the loop": ("import time\nasync def test(): time.sleep(0.5)\n", "in test"),
    "busy on the loop": (
        """
import asyncio, time
def busy():
    end = time.thread_time() + 0.3
    while time.thread_time() < end: pass
async def test():
    asyncio.get_running_loop().call_soon(busy)
    await asyncio.sleep(0.01)
""",
        "in busy",
    ),
    "a leaked task": (
        "import asyncio\nasync def test(): asyncio.create_task(asyncio.sleep(99))\n",
        "task left running",
    ),
    "a leaked thread": (
        "import threading, time\ndef test(): threading.Thread(target=time.sleep, args=(5,), name='mine').start()\n",
        "thread left running: mine",
    ),
    "a leaked socket": (
        "import socket\nkeep = []\ndef test(): keep.append(socket.socket())\n",
        "file descriptor left open",
    ),
    "a leaked process": (
        "import subprocess\nkeep = []\ndef test(): keep.append(subprocess.Popen(['sleep', '7']))\n",
        "process left behind",
    ),
    "a leaked process that is nobody's child any more": (
        """
import subprocess, time
def test(tmp_path):
    script = tmp_path / "orphan.sh"
    script.write_text("echo $$ > orphan.pid; sleep 9")
    subprocess.run(["sh", "-c", f"cd {tmp_path}; setsid sh {script} </dev/null >/dev/null 2>&1 &"], check=True)
    while not (tmp_path / "orphan.pid").exists(): time.sleep(0.01)
""",
        "orphan.sh",
    ),
    "a warning in the log": (
        "import logging\ndef test(): logging.getLogger('enterprise_gateway.x').warning('oh %s', 'no')\n",
        "unexpected log message: WARNING enterprise_gateway.x: oh no",
    ),
    "a warning of the application": (
        """
import traitlets.config
class EnterpriseGatewayApp(traitlets.config.Application): pass
def test(): EnterpriseGatewayApp().log.warning('oh %s', 'no')
""",
        "unexpected log message: WARNING EnterpriseGatewayApp: oh no",
    ),
    "a warning that did not come": (
        "def test(expect_log):\n    with expect_log('never'): pass\n",
        "no log message matched 'never'",
    ),
    "a Python warning": ("import warnings\ndef test(): warnings.warn('old')\n", "UserWarning: old"),
    "a changed environment": ("import os\ndef test(): os.environ['X_Y'] = '1'\n", "changed the environment: ['X_Y']"),
    "an unknown marker": ("import pytest\n@pytest.mark.nonsense\ndef test(): pass\n", "nonsense"),
}


@pytest.mark.parametrize("body", GOOD.values(), ids=GOOD)
def test_good_manners_pass(tmp_path: Path, body: str) -> None:
    """What a test may do is not reported, with foreign settings around."""
    result = run_suite(tmp_path, body, EG_PORT="1", KERNEL_USERNAME="x")
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(("body", "complaint"), BAD.values(), ids=BAD)
def test_bad_manners_fail(tmp_path: Path, body: str, complaint: str) -> None:
    """Each rule fails the test that breaks it, and says what was wrong."""
    result = run_suite(tmp_path, body)
    for pid_file in tmp_path.rglob("orphan.pid"):
        os.kill(int(pid_file.read_text()), signal.SIGKILL)
    assert result.returncode in {1, 2}, result.stdout + result.stderr
    assert complaint in result.stdout + result.stderr


SKIPPED = {
    "test": "import pytest\ndef test(): pytest.skip('no cluster here')\n",
    "marked": "import pytest\n@pytest.mark.skipif(True, reason='no cluster here')\ndef test(): pass\n",
    "module": "import pytest\npytest.skip('no cluster here', allow_module_level=True)\n",
}


@pytest.mark.parametrize("body", SKIPPED.values(), ids=SKIPPED)
def test_a_skip_fails_in_ci_only(tmp_path: Path, body: str) -> None:
    """On a developer's machine a missing system skips its suite; in CI that is a failure."""
    assert run_suite(tmp_path, body).returncode in {0, 5}
    in_ci = run_suite(tmp_path, body, CI="true")
    assert in_ci.returncode in {1, 2}
    assert "no cluster here" in in_ci.stdout


def test_a_missing_program_is_named_with_its_package(tmp_path: Path) -> None:
    """A test is skipped for what this machine lacks, and the last line of the run says what to install."""
    body = "import pytest\n@pytest.mark.browser\ndef test(): raise AssertionError\n"
    result = run_suite(tmp_path, body, PATH="/nonexistent")
    assert result.returncode == 0, result.stdout
    assert "needs chromium, chromedriver (Debian: chromium chromium-driver)" in result.stdout
    assert result.stdout.rstrip().endswith("; on Debian: apt install chromium chromium-driver")


@pytest.mark.parametrize(
    "waiting", ["await asyncio.sleep(60)", "await asyncio.to_thread(event.wait, 3)", "event.wait(60)"]
)
def test_a_test_that_takes_too_long_fails_alone(tmp_path: Path, waiting: str) -> None:
    """The time-out ends one test, wherever it waits; the run goes on."""
    body = (
        "import asyncio, threading, pytest\nevent = threading.Event()\n"
        f"@pytest.mark.timeout(1, func_only=True)\nasync def test_slow():\n    {waiting}\n"
        "async def test_other(): await asyncio.sleep(0)\n"
    )
    result = run_suite(tmp_path, body)
    assert "1 failed, 1 passed" in result.stdout, result.stdout + result.stderr
    assert "Timeout" in result.stdout

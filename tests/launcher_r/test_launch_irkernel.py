"""The R launcher: a real R kernel behind it, a real response server before it."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from enterprise_gateway.core.offload import offload
from enterprise_gateway.transport.response import ResponseServer
from tests.support.launchers import LAUNCHERS, end, eventually, files, launched, port_answers, send_raw, start

pytestmark = pytest.mark.r

LAUNCHER = ["Rscript", str(LAUNCHERS / "R" / "scripts" / "launch_IRkernel.R")]
HELPER_PYTHON = {"PYSPARK_PYTHON": sys.executable}


@pytest.mark.parametrize("version", [1, 2])
async def test_starts_executes_interrupts_and_shuts_down(version: int, tmp_path: Path) -> None:
    """An R kernel reports in either payload version, runs code, is interrupted, and leaves nothing when it ends."""
    async with launched(LAUNCHER, log=tmp_path / "log", version=version, env=HELPER_PYTHON) as kernel:
        await kernel.connect(30)
        assert await kernel.run("x <- 20; x + 1") == ("ok", "[1] 21")
        loop = "for (i in 1:1000) { cat('round', i, '\\n'); flush.console(); Sys.sleep(0.1) }"
        assert await kernel.interrupt_when_printed(loop, "round 3") != "ok"
        assert await kernel.run("x") == ("ok", "[1] 20")
        kernel.shut_down()
        assert await kernel.wait_ended() == 0


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
async def test_ends_by_signal_and_leaves_no_listener(signum: int, tmp_path: Path) -> None:
    """A signal to the communication port ends the kernel, its listener and its connection file."""
    environment = {**HELPER_PYTHON, "TMPDIR": str(tmp_path)}
    async with launched(LAUNCHER, log=tmp_path / "log", version=2, env=environment) as kernel:
        assert await offload(kernel.comm.probe)
        assert await offload(kernel.comm.signal, signum)
        assert await kernel.wait_ended() == -signum
        assert files(tmp_path, "kernel-*.json") == []


async def test_user_code_sees_neither_secret_nor_launcher(tmp_path: Path) -> None:
    """Cells and their children do not see the launch's secret, and the launcher leaves nothing in the workspace."""
    async with launched(LAUNCHER, log=tmp_path / "log", version=2, env=HELPER_PYTHON) as kernel:
        await kernel.connect(30)
        assert await kernel.run("cat(Sys.getenv('EG_LAUNCH_SECRET'), '.', sep = '')") == ("ok", ".")
        assert (await kernel.run("cat(system('env | grep -c EG_LAUNCH_SECRET || true', intern = TRUE))"))[1] == "0"
        assert await kernel.run("cat(ls())") == ("ok", "")


async def test_garbage_on_the_communication_port_is_survived(tmp_path: Path) -> None:
    """Port scans, garbage and unauthenticated commands do not cost the kernel its listener."""
    async with launched(LAUNCHER, log=tmp_path / "log", version=2, env=HELPER_PYTHON) as kernel:
        for data in (b"", b"\0" * 1000, b'{"signum": 9}', b'{"signum": 9}\n{"shutdown": 1}\n'):
            await offload(send_raw, kernel.info.comm_port, data)
        await asyncio.sleep(0.3)
        assert kernel.process.poll() is None
        assert await offload(kernel.comm.probe)


async def test_old_spellings_work_and_new_ones_win(tmp_path: Path) -> None:
    """Kernelspecs of Enterprise Gateway 1 to 3 start the launcher; options of either spelling may lack a value."""
    old = [
        *("--RemoteProcessProxy.kernel-id", "not-me", "--RemoteProcessProxy.public-key=bm90IG1l"),
        *("--RemoteProcessProxy.response-address", "--RemoteProcessProxy.port-range", "1..2"),
        *("--RemoteProcessProxy.spark-context-initialization-mode", "none", "--customAppName", "--cluster-type"),
    ]
    async with launched([*LAUNCHER, *old], log=tmp_path / "log", version=2, env=HELPER_PYTHON) as kernel:
        await kernel.connect(30)


def _fails(arguments: list[str], log: Path, seconds: float = 20) -> str:
    process = start([*LAUNCHER, *arguments], log=log, env=HELPER_PYTHON)
    try:
        assert process.wait(seconds) == 1
    finally:
        end(process)
    return log.read_text()


def test_missing_options_end_the_launcher(tmp_path: Path) -> None:
    """Without kernel id or public key the launcher says what it needs and fails."""
    assert "--kernel-id is required" in _fails(["--public-key", "x"], tmp_path / "1")
    assert "--public-key is required" in _fails(["--kernel-id", "x"], tmp_path / "2")


def test_a_failing_helper_ends_the_launcher_at_once(tmp_path: Path) -> None:
    """When the helper cannot do its work the launcher does not wait for the connection file."""
    began = time.monotonic()
    arguments = ["--kernel-id", "k", "--public-key", "bm8=", "--response-address", "127.0.0.1:1"]
    output = _fails([*arguments, "--port-range", "40000..40001"], tmp_path / "log")
    assert "40000..40001" in output
    assert "ended without writing the connection file" in output
    assert time.monotonic() - began < 10


async def test_without_response_address_only_the_file_is_written(tmp_path: Path) -> None:
    """In pull mode somebody else reads the connection file; nobody listens for signals."""
    server = ResponseServer(ip="127.0.0.1", port=0)
    await server.start()
    file = tmp_path / "kernel.json"
    arguments = ["--kernel-id", "k", "--public-key", server.public_key, str(file)]
    process = start([*LAUNCHER, *arguments], log=tmp_path / "log", env=HELPER_PYTHON)
    try:
        await eventually(file.exists)
        assert file.stat().st_mode & 0o077 == 0
        assert process.poll() is None
    finally:
        await offload(end, process)
        await server.stop()


SPARKR = {
    "DESCRIPTION": "Package: SparkR\nVersion: 0.1\nTitle: Stand-In\nDescription: For tests.\nLicense: BSD\n",
    "NAMESPACE": "export(sparkR.session, sparkR.session.stop)\n",
    "R/session.R": """
        sparkR.session <- function(appName, sparkConfig) {
          cat("session", appName, sparkConfig$spark.app.name, "\\n", file = Sys.getenv("SPARK_LOG"), append = TRUE)
          structure(list(app = appName), class = "session")
        }
        callJStatic <- function(class, method, session) list(context = session$app)
        sparkR.session.stop <- function() cat("stop\\n", file = Sys.getenv("SPARK_LOG"), append = TRUE)
    """,
}


@pytest.fixture
def spark_library(tmp_path: Path) -> dict[str, str]:
    """Make an R library with a package that has SparkR's functions and notes the calls: Debian has no SparkR."""
    source, library = tmp_path / "src" / "SparkR", tmp_path / "library"
    library.mkdir()
    for name, text in SPARKR.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(text)
    rscript = shutil.which("R")
    assert rscript
    install = [rscript, "CMD", "INSTALL", "--no-docs", f"--library={library}", str(source)]
    subprocess.run(install, check=True, capture_output=True, env={**os.environ, "LC_ALL": "C"})
    return {**HELPER_PYTHON, "R_LIBS": str(library), "SPARK_LOG": str(tmp_path / "spark")}


@pytest.mark.parametrize("mode", ["lazy", "eager"])
async def test_spark_session_is_made_when_the_mode_says(
    mode: str, spark_library: dict[str, str], tmp_path: Path
) -> None:
    """Lazy makes the session when a cell first uses it, eager at the start; it is stopped with the kernel."""
    calls = Path(spark_library["SPARK_LOG"])

    arguments = ["--spark-context-initialization-mode", mode, "--customAppName", "the-app"]
    async with launched([*LAUNCHER, *arguments], log=tmp_path / "log", version=2, env=spark_library) as kernel:
        await kernel.connect(30)
        assert files(tmp_path, "spark") == (["spark"] if mode == "eager" else [])
        assert await kernel.run("cat(sc$context, spark$app, sqlContext$app)") == ("ok", "the-app the-app the-app")
        kernel.shut_down()
        await kernel.wait_ended()
        assert await offload(calls.read_text) == "session the-app the-app \nstop\n"


async def test_without_sparkr_the_kernel_starts_all_the_same(tmp_path: Path) -> None:
    """A kernelspec that asks for Spark on a host without SparkR gives a plain R kernel and a line in the log."""
    arguments = ["--spark-context-initialization-mode", "lazy"]
    async with launched([*LAUNCHER, *arguments], log=tmp_path / "log", version=2, env=HELPER_PYTHON) as kernel:
        await kernel.connect(30)
        assert "SparkR is not installed" in kernel.output
        assert port_answers(kernel.info.comm_port)

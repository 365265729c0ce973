"""The Toree launcher: a real Scala kernel on Spark behind it, a real response server before it.

The kernels are started through the kernelspec's ``bin/run.sh``, so that its hand-over of the secret is tested too.
"""

from __future__ import annotations

import asyncio
import shutil
import signal
from pathlib import Path

import pytest

from enterprise_gateway.core.offload import offload
from enterprise_gateway.core.payload import KeyPair
from tests.clusters import toree
from tests.support.launchers import end, eventually, files, launched, send_raw, start

pytestmark = [pytest.mark.scala, pytest.mark.slow, pytest.mark.timeout(300)]

KERNELSPECS = toree.REPOSITORY / "etc" / "kernelspecs"
READY_SECONDS = 90


@pytest.fixture(scope="module")
def lab() -> toree.Toree:
    """Return where Spark, Toree and the launcher are; makes them when they are missing."""
    return toree.prepare()


@pytest.fixture
def run_sh(lab: toree.Toree, tmp_path: Path) -> list[str]:
    """Install the kernelspec scala_distributed, complete with its jars, and return its command."""
    folder = tmp_path / "scala_distributed"
    shutil.copytree(KERNELSPECS / "scala_distributed", folder)
    (folder / "lib").symlink_to(lab.lib)
    return [str(folder / "bin" / "run.sh")]


def environment(lab: toree.Toree, tmp_path: Path, **more: str) -> dict[str, str]:
    """Return the variables of the kernelspec, for a Spark that stays on this host and small."""
    options = "--master local[1] --driver-memory 512m --conf spark.ui.enabled=false --driver-java-options"
    return {
        "SPARK_HOME": str(lab.spark_home),
        "SPARK_LOCAL_IP": "127.0.0.1",
        "__TOREE_SPARK_OPTS__": f"{options} '-Djava.io.tmpdir={tmp_path} -XX:TieredStopAtLevel=1'",
        "__TOREE_OPTS__": "--alternate-sigint USR2",
        **more,
    }


async def test_version_2_from_start_to_shutdown(lab: toree.Toree, run_sh: list[str], tmp_path: Path) -> None:
    """A Scala kernel reports, runs code on Spark, is interrupted, hides the secret, and ends leaving nothing."""
    log = tmp_path / "log"
    async with launched(run_sh, log=log, version=2, env=environment(lab, tmp_path)) as kernel:
        await kernel.connect(READY_SECONDS)
        assert await kernel.result('"sum " + (1 to 9).sum') == "sum 45"
        assert (await kernel.result("sc.parallelize(1 to 10, 2).sum()")).endswith("55.0")

        assert await kernel.result('sys.env.keys.exists(_.contains("SECRET"))') == "false"
        assert await kernel.result('sys.process.Process("env").!!.contains("SECRET")') == "false"
        source = 'scala.io.Source.fromFile("/proc/self/environ", "latin1").mkString.contains("SECRET")'
        assert await kernel.result(source) == "false"

        loop = 'println("looping"); while (true) Thread.sleep(100)'
        assert await kernel.interrupt_when_printed(loop, "looping") != "ok"
        await kernel.result("0")  # the first result after an error shows "lastException"
        assert await kernel.result("6 * 7") == "42"

        assert files(tmp_path, "jupyter-kernel*")
        kernel.shut_down()
        await kernel.wait_ended(30)
        assert files(tmp_path, "jupyter-kernel*") == []
    assert "hmac" not in kernel.output


async def test_version_1_without_spark_and_killed(lab: toree.Toree, run_sh: list[str], tmp_path: Path) -> None:
    """A gateway of version 3 starts the kernel and kills it; garbage before that costs it nothing."""
    arguments = [*run_sh, "--spark-context-initialization-mode", "none"]
    log = tmp_path / "log"
    async with launched(arguments, log=log, version=1, env=environment(lab, tmp_path)) as kernel:
        for data in (b"", b"\0" * 1000, b"[", b'{"signum": 64}'):
            await offload(send_raw, kernel.info.comm_port, data)
        await kernel.connect(READY_SECONDS)
        assert await offload(kernel.comm.probe)
        loop = 'println("looping"); while (true) Thread.sleep(100)'
        assert await kernel.interrupt_when_printed(loop, "looping") != "ok"
        await kernel.result("0")  # the first result after an error shows "lastException"
        assert await kernel.result("6 * 7") == "42"
        assert await offload(kernel.comm.signal, signal.SIGKILL)
        await kernel.wait_ended(30)
        assert files(tmp_path, "jupyter-kernel*") == []


async def test_an_early_interrupt_does_not_end_the_kernel(lab: toree.Toree, run_sh: list[str], tmp_path: Path) -> None:
    """The alternate signal, whose default is to end the process, may come before Toree handles it."""
    log = tmp_path / "log"
    async with launched(run_sh, log=log, version=2, env=environment(lab, tmp_path)) as kernel:
        assert await offload(kernel.comm.signal, signal.SIGINT)
        await asyncio.sleep(0.5)
        assert await offload(kernel.comm.probe)
        assert await offload(kernel.comm.signal, signal.SIGTERM)
        await kernel.wait_ended(30)


def test_missing_options_end_the_launcher(lab: toree.Toree, run_sh: list[str], tmp_path: Path) -> None:
    """Without kernel id or public key the launcher says what it needs and fails."""
    log = tmp_path / "log"
    process = start([*run_sh, "--kernel-id", "k"], log=log, env=environment(lab, tmp_path))
    try:
        assert process.wait(60) != 0
    finally:
        end(process)
    assert "--public-key is required" in log.read_text()


async def test_without_response_address_only_the_profile_is_written(
    lab: toree.Toree, run_sh: list[str], tmp_path: Path
) -> None:
    """In pull mode somebody else reads the connection file that ``--profile`` names."""
    key = await offload(_public_key)
    profile = tmp_path / "profile.json"
    arguments = ["--kernel-id", "k", "--public-key", key, "--profile", str(profile)]
    process = start([*run_sh, *arguments], log=tmp_path / "log", env=environment(lab, tmp_path))
    try:
        await eventually(profile.exists, 60)
        assert profile.stat().st_mode & 0o077 == 0
    finally:
        await offload(end, process)


def _public_key() -> str:
    return KeyPair.generate().public_key

"""The Spark variables of the Python launcher, on every supported Spark, with a Spark that stays on this host."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from pathlib import Path

import pytest

from enterprise_gateway.core.offload import offload
from tests.clusters import spark
from tests.support.launchers import LAUNCHERS, LaunchedKernel, eventually, launched, port_answers

pytestmark = [pytest.mark.spark, pytest.mark.slow, pytest.mark.timeout(400)]

PYTHON = [sys.executable, str(LAUNCHERS / "python" / "scripts" / "launch_ipykernel.py")]
ACTIVE = "import pyspark; print(pyspark.SparkContext._active_spark_context is not None)"
SLOW_JOB = """
import time
def slow(rows):
    time.sleep(60)
    return rows
print('now', flush=True)
sc.parallelize([1, 2], 2).mapPartitions(slow).count()
"""


@pytest.fixture(params=spark.VERSIONS)
def environment(request) -> dict[str, str]:
    return {
        "PYTHONPATH": str(spark.prepare(request.param)),
        "PYSPARK_PYTHON": sys.executable,
        "PYSPARK_SUBMIT_ARGS": "--master local[1] --driver-memory 512m --conf spark.ui.enabled=false pyspark-shell",
        "SPARK_LOCAL_IP": "127.0.0.1",
    }


def command(mode: str) -> list[str]:
    return [*PYTHON, "--RemoteProcessProxy.spark-context-initialization-mode", mode]


async def printed(kernel: LaunchedKernel, code: str) -> str:
    """Run code and return the last line that it printed (Spark's JVM may write in between)."""
    status, text = await kernel.run(code, timeout=120)
    assert status == "ok", text + kernel.output[-3000:]
    return text.strip().splitlines()[-1]


async def test_lazy_session(environment, tmp_path):
    """In lazy mode the first cell that names a variable makes the session; jobs are cancelled by an interrupt."""
    async with launched(command("lazy"), log=tmp_path / "log", version=2, env=environment) as kernel:
        await kernel.connect(60)
        assert await printed(kernel, "print(1 + 1); spark_like = 'spark'") == "2"
        assert await printed(kernel, ACTIVE) == "False"
        assert await printed(kernel, "print(repr(globals()['sc']))") == "<sc: made when it is used first>"
        assert await printed(kernel, "def count(n):\n    return spark.range(n).count()\nprint(count(7))") == "7"
        check = "from pyspark.sql import SparkSession; print(isinstance(spark, SparkSession), sqlCtx is sqlContext)"
        assert await printed(kernel, check) == "True True"
        assert await printed(kernel, "print(sql('select 40 + 2 as x').collect()[0].x, sc.master)") == "42 local[1]"
        assert await kernel.interrupt_when_printed(SLOW_JOB, "now", signal.SIGINT, timeout=50) == "error"
        assert await printed(kernel, "print(sc.statusTracker().getActiveJobsIds())") == "[]"
        assert await printed(kernel, "print(spark.range(3).count())") == "3"
        kernel.shut_down()
        asked = time.monotonic()
        await kernel.wait_ended(30)
        assert time.monotonic() - asked < 10


async def test_eager_session(environment, tmp_path):
    """In eager mode the session is made without being asked for, while cells run."""
    async with launched(command("eager"), log=tmp_path / "log", version=2, env=environment) as kernel:
        await kernel.connect(60)
        assert await printed(kernel, "print(1 + 1)") == "2"
        for _ in range(60):
            if await printed(kernel, ACTIVE) == "True":
                break
            await asyncio.sleep(1)
        assert await printed(kernel, "print(spark.range(5).count())") == "5"
        assert await offload(kernel.comm.signal, signal.SIGKILL)
        await eventually(lambda: not port_answers(kernel.info.comm_port))


async def test_no_session(environment, tmp_path):
    """Without a mode there are no Spark variables."""
    async with launched(command("none"), log=tmp_path / "log", version=2, env=environment) as kernel:
        await kernel.connect(60)
        assert await printed(kernel, "print('spark' in globals())") == "False"


async def test_a_failing_session_is_reported(environment, tmp_path):
    """A session that cannot be made fails the cell that needs it, with the reason, and not the kernel."""
    broken = {**environment, "PYSPARK_SUBMIT_ARGS": "--master nonsense pyspark-shell"}
    async with launched(command("lazy"), log=Path(tmp_path / "log"), version=2, env=broken) as kernel:
        await kernel.connect(60)
        code = "try:\n    spark.version\nexcept RuntimeError as error:\n    print(error, error.__cause__ is not None)"
        assert await printed(kernel, code) == "Variable: spark was not initialized properly. True"
        assert await printed(kernel, "print('alive')") == "alive"

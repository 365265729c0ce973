"""The Spark kernelspecs for Python and R with a real spark-submit, on a Spark without a cluster."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from enterprise_gateway.core.offload import offload
from tests.clusters import toree
from tests.support.launchers import launched

pytestmark = [pytest.mark.spark, pytest.mark.scala, pytest.mark.slow, pytest.mark.timeout(300)]

KERNELSPECS = toree.REPOSITORY / "etc" / "kernelspecs"


@pytest.fixture(scope="module")
def spark_home() -> Path:
    """Return where Spark is; makes it when it is missing."""
    return toree.prepare().spark_home


def environment(spark_home: Path) -> dict[str, str]:
    """Return the variables of a kernelspec, for a Spark that stays on this host and small."""
    options = "--master local[1] --name ${KERNEL_ID:-none} --driver-memory 512m --conf spark.ui.enabled=false"
    return {
        "SPARK_HOME": str(spark_home),
        "SPARK_LOCAL_IP": "127.0.0.1",
        "PYSPARK_PYTHON": sys.executable,
        "KERNEL_ID": "the-application",
        "SPARK_OPTS": options,
    }


def install(name: str, directory: Path) -> list[str]:
    """Install a kernelspec and return its command."""
    shutil.copytree(KERNELSPECS / name, directory / name)
    return [str(directory / name / "bin" / "run.sh")]


async def test_python_in_client_mode(spark_home: Path, tmp_path: Path) -> None:
    """A Python kernel under spark-submit has a session of the application that run.sh named, and ends with it."""
    arguments = [*install("spark_python_yarn_client", tmp_path), "--spark-context-initialization-mode", "lazy"]
    async with launched(arguments, log=tmp_path / "log", version=2, env=environment(spark_home)) as kernel:
        await kernel.connect(60)
        result = await kernel.run("print(sc.appName, sc.parallelize(range(10), 2).sum())", timeout=90)
        assert result[0] == "ok"
        assert "the-application 45" in result[1]
        assert await kernel.interrupt_when_printed("import time; print('asleep'); time.sleep(60)", "asleep") == "error"
        kernel.shut_down()
        await kernel.wait_ended(30)


@pytest.mark.r
async def test_r_in_client_mode(spark_home: Path, tmp_path: Path) -> None:
    """An R kernel under spark-submit runs, is interrupted, and ends with it."""
    arguments = [*install("spark_R_yarn_client", tmp_path), "--spark-context-initialization-mode", "none"]
    async with launched(arguments, log=tmp_path / "log", version=2, env=environment(spark_home)) as kernel:
        await kernel.connect(60)
        assert await kernel.run("cat(nzchar(Sys.getenv('EXISTING_SPARKR_BACKEND_PORT')))") == ("ok", "TRUE")
        loop = "for (i in 1:600) { cat('round', i, '\\n'); flush.console(); Sys.sleep(0.1) }"
        assert await kernel.interrupt_when_printed(loop, "round 3") != "ok"
        assert await offload(kernel.comm.probe)
        kernel.shut_down()
        await kernel.wait_ended(30)

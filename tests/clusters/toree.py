"""Spark, Toree and our launcher for it, kept below ``.lab`` (or ``$TEST_LAB``) between runs.

Needs Java 11 or 17 and Maven (Debian: ``openjdk-17-jdk-headless maven``), and the package index for the first time.

By hand::

    python -m tests.clusters.toree      # makes what is missing; prints where it is
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
LAB = Path(os.environ.get("TEST_LAB") or REPOSITORY / ".lab") / "toree"
LAUNCHER = REPOSITORY / "etc" / "kernel-launchers" / "scala" / "toree-launcher"
# Toree 0.5 is built for Scala 2.12, which Spark 4 no longer has.
PACKAGES = ("pyspark==3.5.9", "toree==0.5.0")
# Maven keeps what it has loaded in the developer's home, which tests do not see.
_HOME = Path.home()


@dataclass(frozen=True)
class Toree:
    """Where things are."""

    spark_home: Path
    lib: Path


def prepare() -> Toree:
    """Make what is missing and return where it is; processes that do so at once wait for each other."""
    LAB.mkdir(parents=True, exist_ok=True)
    with (LAB / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        site = _packages()
        lib = LAB / "lib"
        lib.mkdir(exist_ok=True)
        _copy_newer(next((site / "toree" / "lib").glob("toree-assembly-*.jar")), lib)
        _copy_newer(_launcher(), lib)
    return Toree(spark_home=site / "pyspark", lib=lib)


def _packages() -> Path:
    """Unpack the packages; only their jars and scripts are used, so what they depend on is left out."""
    site = LAB / "-".join(PACKAGES).replace("==", "-")
    if not site.exists():
        unfinished = LAB / "unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        _run([sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(unfinished), *PACKAGES])
        unfinished.rename(site)
    return site


def _launcher() -> Path:
    """Build the launcher unless its jar is newer than everything it is made of; its unit tests run with it."""
    sources = [LAUNCHER / "pom.xml", *(LAUNCHER / "src").rglob("*.java")]
    jars = list((LAUNCHER / "target").glob("toree-launcher-*.jar"))
    if not jars or jars[0].stat().st_mtime < max(source.stat().st_mtime for source in sources):
        _run(["mvn", "-q", "-B", "package"], cwd=LAUNCHER)
        jars = list((LAUNCHER / "target").glob("toree-launcher-*.jar"))
    return jars[0]


def _copy_newer(source: Path, directory: Path) -> None:
    target = directory / source.name
    if not target.exists() or target.stat().st_mtime < source.stat().st_mtime:
        shutil.copy2(source, target)


def _run(command: list[str], cwd: Path | None = None) -> None:
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, "HOME": str(_HOME)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{command[:4]} failed:\n{done.stdout[-4000:]}")


if __name__ == "__main__":
    toree = prepare()
    print(f"SPARK_HOME={toree.spark_home}\nLIB={toree.lib}")

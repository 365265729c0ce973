"""PySpark in the versions that the Python launcher supports, kept below ``.lab`` (or ``$TEST_LAB``) between runs.

Needs Java 17 (Debian: ``openjdk-17-jdk-headless``), and the package index for the first time.

By hand::

    python -m tests.clusters.spark      # makes what is missing; prints where it is
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

LAB = Path(os.environ.get("TEST_LAB") or Path(__file__).parents[2] / ".lab") / "spark"
VERSIONS = ("3.5.9", "4.0.1")


def prepare(version: str) -> Path:
    """Return the directory that holds the packages ``pyspark`` and ``py4j``, for a kernel's PYTHONPATH."""
    LAB.mkdir(parents=True, exist_ok=True)
    site = LAB / f"pyspark-{version}"
    with (LAB / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not site.exists():
            unfinished = LAB / "unfinished"
            shutil.rmtree(unfinished, ignore_errors=True)
            install = [sys.executable, "-m", "pip", "install", "-q", "--target", str(unfinished)]
            subprocess.run([*install, f"pyspark=={version}"], check=True)
            unfinished.rename(site)
    return site


if __name__ == "__main__":
    for known in VERSIONS:
        print(prepare(known))

"""R with IRkernel, from Debian's packages ``r-base-core`` and ``r-cran-irkernel``.

By hand (as root, to install what is missing)::

    python -m tests.clusters.r
"""

from __future__ import annotations

import os
import shutil
import subprocess

PACKAGES = ("r-base-core", "r-cran-irkernel")


def is_there() -> bool:
    """Tell whether R can load IRkernel."""
    rscript = shutil.which("Rscript")
    if rscript is None:
        return False
    question = "quit(status = if (requireNamespace('IRkernel', quietly = TRUE)) 0 else 1)"
    return subprocess.run([rscript, "-e", question], capture_output=True, check=False).returncode == 0


def install() -> None:
    """Install the packages unless they are there; needs root and Debian."""
    if is_there():
        return
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update"], ["install", "-y", "--no-install-recommends", *PACKAGES]):
        subprocess.run(["apt-get", "-qq", *command], env=environment, check=True)


if __name__ == "__main__":
    install()

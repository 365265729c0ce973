"""What tests need besides Python packages: programs, how each is found, and the Debian package that has it.

A test says so with a marker: one of :data:`SUITES` (``ssh``, ``r`` …), or ``needs("haproxy")``. Fixtures that start
such programs call :func:`skip_without`. Where something is missing, the test is skipped, the reason names the package,
and :func:`summary` is the last line of the run. CI installs what ``python tests/support/requirements.py`` prints.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sysconfig
from collections.abc import Callable, Iterable
from pathlib import Path

_SYSTEM_DIRECTORIES = ("/usr/local/sbin", "/usr/sbin", "/sbin")  # not on every user's PATH
_wanted: set[str] = set()


def find(program: str) -> str | None:
    """Return the path of a program, also where it is no command for everybody."""
    directories = [*os.get_exec_path(), *_SYSTEM_DIRECTORIES]
    directories += map(str, sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True))
    return shutil.which(program, path=os.pathsep.join(directories))


def found(program: str) -> str:
    """Return the path of a program that the test was not skipped for."""
    path = find(program)
    assert path is not None, f"{program} is missing; does the test say that it needs it?"
    return path


def _irkernel() -> bool:
    rscript = find("Rscript")
    question = "quit(status = if (requireNamespace('IRkernel', quietly = TRUE)) 0 else 1)"
    return (
        rscript is not None
        and not subprocess.run([rscript, "-e", question], capture_output=True, check=False).returncode
    )


def _namespaces() -> bool:
    command = ["unshare", "--net", "--mount", "--uts", "--pid", "--fork", "true"]
    return os.getuid() == 0 and _succeeds(*command)


def _succeeds(*command: str) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _file(*path: str) -> Callable[[], bool]:
    return Path(*path).exists


NAMESPACES = "the right to make network namespaces"

# What is needed: the Debian package that has it, and how it is found where it is no program of that name.
PROGRAMS: dict[str, str] = {
    "chromium": "chromium",
    "chromedriver": "chromium-driver",
    "sshd": "openssh-server",
    "ssh-keygen": "openssh-client",
    "ip": "iproute2",
    "nft": "nftables",
    "sudo": "sudo",
    "unshare": "util-linux",
    "setpriv": "util-linux",
    "ps": "procps",
    "openssl": "openssl",
    "krb5kdc": "krb5-kdc",
    "kadmin.local": "krb5-admin-server",
    "kinit": "krb5-user",
    "krb5-config": "libkrb5-dev",
    "gcc": "gcc",
    "the C library's headers": "libc6-dev",
    "Python's headers": "python3-dev",
    "Rscript": "r-base-core",
    "IRkernel": "r-cran-irkernel",
    "java": "openjdk-17-jdk-headless",
    "javac": "openjdk-17-jdk-headless",
    "mvn": "maven",
    "initdb": "postgresql",
    "munged": "munge",
    "slurmctld": "slurmctld",
    "slurmd": "slurmd",
    "sbatch": "slurm-client",
    "haproxy": "haproxy",
    "nginx": "nginx-light",
    NAMESPACES: "",
}
_FINDERS: dict[str, Callable[[], bool]] = {
    "chromium": lambda: any(map(find, ("chromium", "chromium-browser", "google-chrome"))),
    "the C library's headers": _file("/usr/include/stdio.h"),
    "Python's headers": _file(sysconfig.get_path("include"), "Python.h"),
    "IRkernel": _irkernel,
    NAMESPACES: _namespaces,
}

# What a marker of a whole suite stands for.
SUITES: dict[str, tuple[str, ...]] = {
    "browser": ("chromium", "chromedriver"),
    "ssh": ("sshd", "ssh-keygen", "ip", "nft", "sudo", "unshare", "setpriv", "ps", "openssl", NAMESPACES),
    "kerberos": (
        *("krb5kdc", "kadmin.local", "kinit", "krb5-config"),
        *("gcc", "the C library's headers", "Python's headers"),
    ),
    "postgres": ("initdb",),
    "slurm": ("munged", "slurmctld", "slurmd", "sbatch"),
    "r": ("Rscript", "IRkernel"),
    "spark": ("java",),
    "scala": ("java", "javac", "mvn"),
}


@functools.cache
def _is_there(name: str) -> bool:
    finder = _FINDERS.get(name)
    return finder() if finder else find(name) is not None


def missing(*names: str) -> list[str]:
    """Return those of ``names`` (keys of :data:`PROGRAMS` and :data:`SUITES`) that this machine does not have."""
    programs = [program for name in names for program in SUITES.get(name, (name,))]
    return [program for program in dict.fromkeys(programs) if not _is_there(program)]


def skip_without(*names: str) -> None:
    """Skip the test that calls this, unless all of ``names`` are there."""
    if programs := missing(*names):
        import pytest

        _wanted.update(programs)
        packages = _packages(programs)
        pytest.skip(f"needs {', '.join(programs)}" + (f" (Debian: {' '.join(packages)})" if packages else ""))


def wanted() -> list[str]:
    """Return the programs that tests in this process were skipped for."""
    return sorted(_wanted)


def want(programs: Iterable[str]) -> None:
    """Add programs that tests in another process were skipped for."""
    _wanted.update(programs)


def summary() -> str:
    """Return one line about what tests were skipped for; empty when they were not."""
    if not _wanted:
        return ""
    line = "some tests were skipped for want of what they drive"
    if packages := _packages(_wanted):
        line += f"; on Debian: apt install {' '.join(packages)}"
    return line + "".join(sorted(f"; {program}" for program in _wanted if not PROGRAMS[program]))


def _packages(programs: Iterable[str]) -> list[str]:
    return sorted({PROGRAMS[program] for program in programs} - {""})


if __name__ == "__main__":
    print("\n".join(_packages(PROGRAMS)))

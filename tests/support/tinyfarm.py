"""Kernels by the hundred: the benchmark's tiny ones, all served by one process, as a kernelspec."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks import tinykernel

from .kernelspecs import write_kernelspec


@contextmanager
def tiny_kernels(directory: Path, name: str = "tiny") -> Iterator[Path]:
    """Install the kernelspec ``name`` and serve its kernels; yields a file that has a line for each launch.

    A kernel's process is a ``sleep`` that the gateway starts, watches and signals as any other; it ends with it.
    """
    pipe, launches = directory / "farm", directory / "launches"
    os.mkfifo(pipe)
    launches.touch()
    stub, _ = tinykernel.write_stubs(directory, pipe)
    command = 'echo "$KERNEL_ID" >> "$1"; exec /bin/sh "$2" "$3"'
    write_kernelspec(name, argv=["/bin/sh", "-c", command, "sh", str(launches), str(stub), "{connection_file}"])
    program = [sys.executable, tinykernel.__file__, str(pipe)]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as farm:
        try:
            yield launches
        finally:
            assert farm.stdin is not None
            farm.stdin.close()
            farm.wait(20)

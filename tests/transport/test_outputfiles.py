"""Output files that do not grow without limit."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from enterprise_gateway.core.offload import offload
from enterprise_gateway.transport.localproc import LocalProcess, last_lines
from enterprise_gateway.transport.outputfiles import BEGINNING, LEFT_OUT, cut

LIMIT = 1024 * 1024


def test_the_beginning_and_the_last_lines_stay(tmp_path: Path) -> None:
    """However often it is cut; a file within the limit, or none, is left alone."""
    path = tmp_path / "output"
    assert not cut(path, LIMIT)
    lines = [b"line %d\n" % number for number in range(1_000_000)]
    for start in range(0, len(lines), 200_000):
        with path.open("ab") as file:
            file.writelines(lines[start : start + 200_000])
        assert cut(path, LIMIT)
        assert not cut(path, LIMIT)
        assert path.stat().st_size < LIMIT
    content, everything = path.read_bytes(), b"".join(lines)
    assert content[:BEGINNING] == everything[:BEGINNING]
    assert content[BEGINNING:].startswith(LEFT_OUT + b"line ")
    end = content[BEGINNING + len(LEFT_OUT) :]
    assert len(end) > LIMIT // 4
    assert everything.endswith(b"\n" + end)
    assert last_lines(path, 2) == "line 999998\nline 999999"


@pytest.mark.parametrize("size", [4097, 5000, 100_000])
def test_a_file_without_line_ends_is_cut_too(size: int, tmp_path: Path) -> None:
    """Also by the smallest limit there may be."""
    path = tmp_path / "output"
    path.write_bytes(os.urandom(size).replace(b"\n", b"x"))
    content = path.read_bytes()
    assert cut(path, 4096)
    assert path.stat().st_size < 4096
    assert path.read_bytes()[:1024] == content[:1024]
    assert path.read_bytes()[-2000:] == content[-2000:]


def test_of_several_that_cut_at_once_one_does(tmp_path: Path) -> None:
    """Replicas on one machine look at the same files."""
    path = tmp_path / "output"
    path.write_bytes(bytes(2 * LIMIT))
    with path.open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert not cut(path, LIMIT)
    assert cut(path, LIMIT)


def test_a_symbolic_link_is_not_followed(tmp_path: Path) -> None:
    """In a directory that others can write to, a link may lead to a file of ours."""
    precious = tmp_path / "precious"
    precious.write_bytes(bytes(2 * LIMIT))
    (tmp_path / "output").symlink_to(precious)
    with pytest.raises(OSError, match="symbolic link"):
        cut(tmp_path / "output", LIMIT)
    assert precious.stat().st_size == 2 * LIMIT


async def test_a_process_that_writes_meanwhile_goes_on_where_the_file_ends(tmp_path: Path) -> None:
    """What it writes after a cut is behind what was kept, in order; its last line is the last of the file."""
    path = tmp_path / "output"
    script = "i=0; while [ $i -lt 60000 ]; do echo $i; i=$((i+1)); done"
    process = await offload(LocalProcess.spawn, ("sh", "-c", script), env=dict(os.environ), output=path)
    cuts = 0
    while process.poll() is None:
        cuts += await offload(cut, path, 16 * 1024)
    await offload(cut, path, 16 * 1024)
    beginning, _, end = (await offload(path.read_text)).partition(LEFT_OUT.decode())
    assert cuts > 3
    assert beginning.splitlines()[:-1] == [str(number) for number in range(len(beginning.splitlines()) - 1)]
    numbers = [int(line) for line in end.splitlines()]
    assert numbers == sorted(numbers)
    assert numbers[-1] == 59999

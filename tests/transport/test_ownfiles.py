"""Files whose names somebody else may have taken first: in no case is one waited for, written to or shown."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import pytest

from enterprise_gateway.core.ownfiles import check_own, make_private_directory, open_own, read_own
from enterprise_gateway.services.processproxies.deployment import ended_runs, read_or_make
from enterprise_gateway.services.processproxies.remnants import label_in, local_files
from enterprise_gateway.transport.localproc import LocalProcess, last_lines
from enterprise_gateway.transport.outputfiles import cut
from tests.support.foreignfiles import ANOTHER, MADE_FIRST, file_of_another, link, needs_root, pipe, socket_file

HOW_OPENED = {
    "read": os.O_RDONLY,
    "written": os.O_WRONLY,
    "appended": os.O_WRONLY | os.O_APPEND | os.O_CREAT,
    "both": os.O_RDWR,
}


def in_time(function: Callable[..., Any], *args: Any) -> Any:
    """Call a function that may wait at a pipe, which is opened for it when that takes long; fail then."""
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(function, *args)
        if not wait([call], 5).done:
            for path in (path for path in args if isinstance(path, Path)):
                for pipe_ in [path, *path.parent.glob("*")]:
                    if pipe_.is_fifo():
                        os.close(os.open(pipe_, os.O_RDWR | os.O_NONBLOCK))
            pytest.fail("it waited for ever")
        return call.result()


@pytest.mark.parametrize("how", HOW_OPENED)
@pytest.mark.parametrize("make", MADE_FIRST)
def test_what_is_not_ours_is_refused_at_once(make: Callable[[Path], None], how: str, tmp_path: Path) -> None:
    """The error says what has the name, and what to do; nothing is made elsewhere."""
    make(tmp_path / "name")
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(PermissionError, match=rf"{tmp_path}/name is .*: remove it"):
        os.close(in_time(open_own, tmp_path / "name", HOW_OPENED[how]))
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.parametrize("make", MADE_FIRST)
def test_what_another_library_opens_is_looked_at_first(make: Callable[[Path], None], tmp_path: Path) -> None:
    """The same is refused, without being opened: with a descriptor SQLite's locks on its file would go."""
    make(tmp_path / "name")
    with pytest.raises(PermissionError, match=rf"{tmp_path}/name is .*: remove it"):
        check_own(tmp_path / "name")
    with pytest.raises(FileNotFoundError):
        check_own(tmp_path / "none")
    (tmp_path / "ours").touch()
    check_own(tmp_path / "ours")


def test_a_pipe_at_which_somebody_is_is_refused_too(tmp_path: Path) -> None:
    """Opening it would not wait, and tell its maker all that is written."""
    os.mkfifo(tmp_path / "name")
    other_end = os.open(tmp_path / "name", os.O_RDWR)
    try:
        for flags in HOW_OPENED.values():
            with pytest.raises(PermissionError, match="a pipe"):
                open_own(tmp_path / "name", flags)
    finally:
        os.close(other_end)


def test_a_new_file_is_for_us_alone_and_waits_as_files_do(tmp_path: Path) -> None:
    """Whatever the umask is; who inherits the descriptor finds nothing unusual."""
    umask = os.umask(0)
    try:
        descriptor = open_own(tmp_path / "name", HOW_OPENED["appended"])
    finally:
        os.umask(umask)
    assert stat.S_IMODE(os.fstat(descriptor).st_mode) == 0o600
    assert os.get_blocking(descriptor)
    assert not os.get_inheritable(descriptor)
    os.close(descriptor)
    with pytest.raises(FileNotFoundError):
        read_own(tmp_path / "none")


def test_our_own_file_is_closed_to_others_before_it_is_written(tmp_path: Path) -> None:
    """And appended to; one that is only read stays as it is."""
    path = tmp_path / "name"
    path.write_text("one\n")
    path.chmod(0o644)
    assert read_own(path) == b"one\n"
    assert read_own(path, 2) == b"on"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    with open(open_own(path, HOW_OPENED["appended"]), "w") as file:
        file.write("two\n")
    assert (path.read_text(), stat.S_IMODE(path.stat().st_mode)) == ("one\ntwo\n", 0o600)


@needs_root
@pytest.mark.parametrize("owner", ["us", "root", "another"])
def test_a_user_trusts_own_files_and_roots(owner: str, tmp_path: Path) -> None:
    """Root can do as it pleases anyway; on some file systems everything belongs to it."""
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "name").write_text("content")
    (folder / "name").chmod(0o644)
    os.chown(folder, ANOTHER, ANOTHER)
    os.chown(folder / "name", *[{"us": ANOTHER, "root": 0, "another": ANOTHER - 1}[owner]] * 2)
    code = (
        "import os, sys; from enterprise_gateway.core.ownfiles import read_own; os.chdir(sys.argv[1]); "
        f"os.setgroups([]); os.setgid({ANOTHER}); os.setuid({ANOTHER}); print(read_own('name').decode())"
    )
    command = [sys.executable, "-c", code, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    if owner == "another":
        assert "name is a file of the user with id 65533" in done.stderr
    else:
        assert (done.stdout, done.stderr) == ("content\n", "")


@pytest.mark.parametrize("make", [pipe, link, pytest.param(file_of_another, marks=needs_root)])
def test_a_private_directory_is_ours(make: Callable[[Path], None], tmp_path: Path) -> None:
    """It is made, or was by us and is closed to others; what somebody else has put there is refused."""
    for _ in range(2):
        make_private_directory(tmp_path / "private")
        assert stat.S_IMODE((tmp_path / "private").stat().st_mode) == 0o700
        (tmp_path / "private").chmod(0o755)
    make(tmp_path / "name")
    (tmp_path / "link").symlink_to(tmp_path / "private")
    for name in ("name", "link"):
        with pytest.raises(PermissionError, match=f"{name} is no directory of its user"):
            make_private_directory(tmp_path / name)
    assert stat.S_IMODE((tmp_path / "private").stat().st_mode) == 0o755
    if os.getuid() == 0:
        os.chown(tmp_path / "private", ANOTHER, ANOTHER)
        with pytest.raises(PermissionError, match="a directory of the user with id 65534"):
            make_private_directory(tmp_path / "private")


@pytest.mark.parametrize("make", MADE_FIRST)
def test_a_process_does_not_write_to_what_is_not_ours(make: Callable[[Path], None], tmp_path: Path) -> None:
    """It is not started at all, and at once; no secret goes to who made the file first."""
    make(tmp_path / "output")

    def spawn(output: Path) -> LocalProcess:
        return LocalProcess.spawn(["echo", "the token is"], env=dict(os.environ), output=output)

    with pytest.raises(PermissionError, match="output is .*: remove it"):
        in_time(spawn, tmp_path / "output").wait(5)
    for path in tmp_path.iterdir():
        assert not path.is_file() or "token" not in path.read_text()


@pytest.mark.parametrize("make", MADE_FIRST)
def test_what_is_not_ours_is_neither_shown_nor_cut(make: Callable[[Path], None], tmp_path: Path) -> None:
    """A client must not see the end of a file by having a link to it where its launcher's output is."""
    make(tmp_path / "output")
    assert in_time(last_lines, tmp_path / "output") == ""
    precious = tmp_path / "precious"
    precious.write_bytes(b"x" * 10_000)
    if make not in (pipe, socket_file, file_of_another):
        with pytest.raises(PermissionError, match="output is"):
            in_time(cut, tmp_path / "output", 4096)
    assert precious.stat().st_size == 10_000


@pytest.mark.parametrize("make", MADE_FIRST)
def test_the_sweep_passes_over_what_is_not_ours(make: Callable[[Path], None], tmp_path: Path) -> None:
    """A pipe with the name of a connection file, or of a run's lock, keeps nobody waiting."""
    make(tmp_path / "kernel-1.json")
    if (secret := tmp_path / "precious").exists():
        secret.write_text('{"eg_deployment_id": "label"}')
    assert in_time(label_in, tmp_path / "kernel-1.json") == ""
    assert in_time(lambda folder: list(local_files(folder, ["label"])), tmp_path) == []
    (tmp_path / "kernel-1.json").rename(tmp_path / "gateway-run-label.lock")
    assert in_time(lambda folder: list(ended_runs(folder)), tmp_path) == []


@pytest.mark.parametrize("make", [pipe, link, pytest.param(file_of_another, marks=needs_root)])
def test_a_label_is_only_taken_from_a_file_of_ours(make: Callable[[Path], None], tmp_path: Path) -> None:
    """Else somebody could have a gateway sweep what is another one's, or wait for ever at its first start."""
    make(tmp_path / "label")
    with pytest.raises(PermissionError, match="label is .*: remove it"):
        in_time(read_or_make, tmp_path / "label")
    assert {path.name for path in tmp_path.iterdir()} <= {"label", "precious"}
    assert read_or_make(tmp_path / "another") == read_or_make(tmp_path / "another")
    assert stat.S_IMODE((tmp_path / "another").stat().st_mode) == 0o600

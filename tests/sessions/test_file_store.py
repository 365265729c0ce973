"""Sessions in files: format, permissions, atomicity."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from enterprise_gateway.core.errors import StoreUnavailableError
from enterprise_gateway.services.sessions.kernelsessionmanager import FileKernelSessionManager

from .conftest import a_kernel_id, a_start

DATA = Path(__file__).parent / "data"
DISTRIBUTED = "5f2e7c0a-93a7-4ac2-9a5c-1f4b7e6d2c11"
CONDUCTOR = "b1946ac9-2492-4d23-a7c5-0f5a1f3d7e20"


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def store_of_3x(tmp_path):
    """Return the directory that Enterprise Gateway 3.x left behind, with its permissions."""
    directory = tmp_path / "kernel_sessions"
    directory.mkdir(mode=0o755)
    directory.chmod(0o755)
    for path in DATA.glob("*.json"):
        shutil.copy(path, directory)
        (directory / path.name).chmod(0o644)
    return directory


async def test_sessions_of_3x_load(make, store_of_3x):
    """Files that Enterprise Gateway 3.x wrote load with all that is in them; keys are bytes, the phase is running."""
    sessions = await make("file").fetch_sessions()
    assert set(sessions) == {DISTRIBUTED, CONDUCTOR}
    for kernel_id, record in sessions.items():
        written = json.loads((DATA / f"{kernel_id}.json").read_text())[kernel_id]
        written["connection_info"]["key"] = written["connection_info"]["key"].encode()
        assert record == written
    assert (await make("file").fetch_session(CONDUCTOR))["process_info"]["rest_credential"] == "Bearer xyz"


async def test_permissions_of_3x_are_tightened(make, store_of_3x, caplog):
    """A directory of mode 0755 and files of 0644 become 0700 and 0600, with a log line each."""
    caplog.set_level("INFO")
    await make("file").fetch_sessions()
    assert mode_of(store_of_3x) == 0o700
    assert {mode_of(path) for path in store_of_3x.iterdir()} == {0o600}
    assert "0755, now 0700" in caplog.text
    assert "access to 2 kernel session files" in caplog.text


async def test_3x_could_load_what_is_saved(make, tmp_path):
    """A file holds one JSON object keyed by kernel id with 3.x's entries, the key as text; modes are 0600 and 0700."""
    kernel_id = a_kernel_id()
    umask = os.umask(0)
    try:
        await make("file").record_phase(kernel_id, "running", **a_start())
    finally:
        os.umask(umask)
    path = tmp_path / "kernel_sessions" / f"{kernel_id}.json"
    content = json.loads(path.read_text())
    assert list(content) == [kernel_id]
    of_3x = {"kernel_id", "username", "kernel_name", "connection_info", "launch_args", "process_info"}
    assert set(content[kernel_id]) == of_3x | {"state", "saved_at", "schema_version"}
    assert content[kernel_id]["connection_info"]["key"] == "connection-key"
    assert (mode_of(path), mode_of(path.parent)) == (0o600, 0o700)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"5", b"\xff\xfe", b'{"other": {}}', b'{"%s": 5}', b'{"%s": {"kernel_id": "x"}}']
)
async def test_a_corrupt_file_is_set_aside(make, tmp_path, expect_log, content):
    """A file that is no session is logged and kept under another name; the other sessions load."""
    manager, kernel_id, broken = make("file"), a_kernel_id(), a_kernel_id()
    await manager.record_phase(kernel_id, "running", **a_start())
    path = tmp_path / "kernel_sessions" / f"{broken}.json"
    path.write_bytes(content.replace(b"%s", broken.encode()))
    with expect_log(f"{broken}.json is not a kernel session"):
        assert set(await make("file").fetch_sessions()) == {kernel_id}
    assert not path.exists()
    assert path.with_name(f"{broken}.json.corrupt").exists()
    assert await manager.fetch_session(broken) is None


async def test_a_directory_that_vanishes_is_no_empty_store(make, tmp_path, expect_log):
    """When the file system goes away, kernels are not called unknown: asking raises the error with status 503."""
    manager, kernel_id = make("file"), a_kernel_id()
    await manager.record_phase(kernel_id, "running", **a_start())
    (tmp_path / "kernel_sessions").rename(tmp_path / "elsewhere")
    with expect_log("no longer exists"), pytest.raises(StoreUnavailableError) as raised:
        await manager.fetch_session(kernel_id)
    assert raised.value.status == 503
    (tmp_path / "elsewhere").rename(tmp_path / "kernel_sessions")
    assert await manager.fetch_session(kernel_id)


async def test_unreadable_files_stay(make, tmp_path, expect_log):
    """What cannot be read now is logged and left alone."""
    manager, kernel_id = make("file"), a_kernel_id()
    await manager.record_phase(kernel_id, "running", **a_start())
    path = tmp_path / "kernel_sessions" / f"{kernel_id}.json"
    path.unlink()
    path.mkdir()
    with expect_log("cannot be used at present and is left in place"):
        assert await make("file").fetch_sessions() == {}
    assert path.is_dir()


@pytest.mark.parametrize("kind", ["pipe", "link", "another user's"])
async def test_a_record_that_somebody_else_made_is_not_used(make, tmp_path, expect_log, kind):
    """In a directory that was open to others: it is not waited for, and a link has nothing done to its target."""
    if kind == "another user's" and os.getuid() != 0:
        pytest.skip("not applicable: needs files of two users")
    mine, planted = a_kernel_id(), a_kernel_id()
    await make("file").record_phase(mine, "running", **a_start())
    path, target = tmp_path / "kernel_sessions" / f"{planted}.json", tmp_path / "target"
    target.write_text((path.with_name(f"{mine}.json")).read_text().replace(mine, planted))
    target.chmod(0o644)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "link":
        path.symlink_to(target)
    else:
        shutil.copy(target, path)
        os.chown(path, 65534, 65534)
    manager = make("file")
    with expect_log("cannot be used at present and is left in place: .* is .*: remove it"):
        sessions = await asyncio.wait_for(manager.fetch_sessions(), 10)
    assert set(sessions) == {mine}
    with expect_log("remove it"), pytest.raises(StoreUnavailableError):
        await asyncio.wait_for(make("file").fetch_session(planted), 10)
    assert mode_of(target) == 0o644


@pytest.mark.skipif(os.getuid() != 0, reason="not applicable: needs a link of another user")
async def test_a_directory_is_not_tightened_through_another_users_link(make, tmp_path, expect_log):
    """A gateway that is root's would take everybody's access to some directory of the system away."""
    system = tmp_path / "system"
    system.mkdir(mode=0o755)
    (tmp_path / "kernel_sessions").symlink_to(system)
    assert await make("file").fetch_sessions() == {}  # the administrator's link
    assert mode_of(system) == 0o700
    system.chmod(0o755)
    os.chown(tmp_path / "kernel_sessions", 65534, 65534, follow_symlinks=False)
    with expect_log("remove it"), pytest.raises(StoreUnavailableError):
        await make("file").fetch_sessions()
    assert mode_of(system) == 0o755


async def test_remains_of_killed_writers_are_removed(make, tmp_path):
    """Unfinished files of a writer that was killed go when they are a minute old; younger ones may be in the making."""
    directory = tmp_path / "kernel_sessions"
    directory.mkdir(mode=0o700)
    old, young = (directory / f".{a_kernel_id()}.json.{os.getpid()}.0123abcd.tmp" for _ in range(2))
    for path in (old, young):
        path.touch()
    os.utime(old, (time.time() - 100, time.time() - 100))
    await make("file").fetch_sessions()
    assert (old.exists(), young.exists()) == (False, True)


WRITER = """
import asyncio, sys
from enterprise_gateway.services.sessions.kernelsessionmanager import FileKernelSessionManager
async def main():
    manager = FileKernelSessionManager(None, enable_persistence=True, persistence_root=sys.argv[1])
    print("ready", flush=True)
    n = 0
    while True:
        n += 1
        info = {"n": n, "filling": "x" * (n * 7919 % 200_000), "again": n}
        await asyncio.gather(*(manager.record_phase(k, "running", process_info=info) for k in sys.argv[2:]))
asyncio.run(main())
"""


async def test_a_writer_killed_at_any_moment_leaves_whole_files(make, tmp_path):
    """A process that writes all the time is killed, ten times: every file is a complete record, none is lost."""
    kernel_ids = [a_kernel_id() for _ in range(3)]
    first = make("file")
    for kernel_id in kernel_ids:
        await first.record_phase(kernel_id, "running", process_info={"n": 0, "filling": "", "again": 0})
    for attempt in range(10):
        writer = await asyncio.create_subprocess_exec(
            sys.executable, "-c", WRITER, str(tmp_path), *kernel_ids, stdout=subprocess.PIPE
        )
        await writer.stdout.readline()
        await asyncio.sleep(0.01 + 0.013 * attempt)
        writer.send_signal(signal.SIGKILL)
        await writer.wait()
        sessions = await make("file").fetch_sessions()
        assert set(sessions) == set(kernel_ids)
        for record in sessions.values():
            info = record["process_info"]
            assert (info["again"], len(info["filling"])) == (info["n"], info["n"] * 7919 % 200_000)
    assert not list((tmp_path / "kernel_sessions").glob("*.corrupt"))


def test_the_default_place_is_the_jupyter_data_directory(monkeypatch, tmp_path):
    """Without persistence_root the files are in Jupyter's data directory; EG_PERSISTENCE_ROOT moves them."""
    assert FileKernelSessionManager(None).persistence_root == os.environ["JUPYTER_DATA_DIR"]
    monkeypatch.setenv("EG_PERSISTENCE_ROOT", str(tmp_path))
    monkeypatch.setenv("EG_KERNEL_SESSION_PERSISTENCE", "true")
    manager = FileKernelSessionManager(None)
    assert (manager.sessions_directory, manager.enable_persistence) == (tmp_path / "kernel_sessions", True)

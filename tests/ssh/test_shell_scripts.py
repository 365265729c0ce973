"""The texts that remote shells are given, run by the shells of this machine."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from enterprise_gateway.drivers import shell_scripts
from tests.support.foreignfiles import ANOTHER, MADE_FIRST, file_of_another, link, needs_root, pipe, second_name

SHELLS = [name for name in ("sh", "dash", "bash", "busybox") if shutil.which(name)]

HOSTILE = {
    "QUOTES": 'it\'s "quoted" \\ and \\\\ more',
    "LINES": "one\ntwo\r\n\ttabbed\n",
    "SUBSTITUTION": "$(touch /tmp/eg-owned) `touch /tmp/eg-owned` ${HOME} $HOME $$",
    "OPERATORS": "; rm -rf / & | > < * ? ~ # !",
    "UNICODE": "grüß 你好 \u0081\u0085\u0088 \U0001f600",
    "UNDECODABLE": "\udcff\udc80",
    "EMPTY": "",
    "LONG": "x" * 100_000,
    "_UNDERSCORE": "-n --",
}

PRINT_ENVIRONMENT = "import os, sys; sys.stdout.buffer.write(b'\\0'.join(k + b'=' + v for k, v in os.environb.items()))"


def run(shell: str, script: str) -> subprocess.CompletedProcess[bytes]:
    command = [shell, "sh"] if shell == "busybox" else [shell]
    return subprocess.run(
        [*command, "-s"], input=script.encode(errors="surrogateescape"), capture_output=True, check=False, timeout=20
    )


def environment_of(output: bytes) -> dict[str, str]:
    pairs = (entry.decode(errors="surrogateescape").partition("=") for entry in output.split(b"\0"))
    return {name: value for name, _, value in pairs}


@pytest.mark.parametrize("shell", SHELLS)
def test_values_survive_every_shell(shell: str) -> None:
    """Whatever a value holds reaches the program unchanged and is never interpreted."""
    result = run(shell, shell_scripts.run_script([sys.executable, "-c", PRINT_ENVIRONMENT], HOSTILE))

    seen = environment_of(result.stdout)
    assert {name: seen.get(name) for name in HOSTILE} == HOSTILE, result.stderr
    assert not Path("/tmp/eg-owned").exists()


@pytest.mark.parametrize("shell", SHELLS)
def test_command_words_survive_every_shell(shell: str) -> None:
    """A command line arrives word by word as it was given."""
    words = list(HOSTILE.values())
    program = "import os, sys; sys.stdout.buffer.write(b'\\0'.join(map(os.fsencode, sys.argv[1:])))"

    result = run(shell, shell_scripts.run_script([sys.executable, "-c", program, *words], {}))

    assert [word.decode(errors="surrogateescape") for word in result.stdout.split(b"\0")] == words


@pytest.mark.parametrize("shell", SHELLS)
def test_variables_no_shell_can_set_are_left_out(shell: str) -> None:
    """Read-only shell variables and names that are none do not end the script."""
    odd = {
        "UID": "7",
        "PPID": "1",
        "SHELLOPTS": "x",
        "OPTIND": "x",
        "BASH_FUNC_x%%": "() { :; }",
        "A.B": "1",
        "a-b": "2",
    }

    result = run(shell, shell_scripts.run_script([sys.executable, "-c", PRINT_ENVIRONMENT], {**odd, "LAST": "here"}))

    assert environment_of(result.stdout)["LAST"] == "here"


def test_values_a_process_cannot_have_are_refused_by_name() -> None:
    """A value with a NUL, or longer than Linux takes, is refused before anything is started; it is not shown."""
    for value in ("secret\0", "secret" * 30_000):
        with pytest.raises(ValueError, match="variable TOKEN") as caught:
            shell_scripts.export_lines({"TOKEN": value})
        assert "secret" not in str(caught.value)


def test_startup_text_exports_and_then_starts() -> None:
    """What stands before the start is nothing but export statements."""
    text = shell_scripts.startup_text(["python", "launcher.py", "--x", "a b"], {"A": "1", "B": "it's"}, "/tmp/k.log")

    before, _, after = text.partition("nohup")
    assert before == "export A=1\nexport B='it'\"'\"'s'\n"
    assert after.endswith("python launcher.py --x 'a b' >> /tmp/k.log 2>&1 < /dev/null & echo $!\n")


@pytest.mark.parametrize("name", ["root; id", "-u", "bob\n", "", "#0", "bob smith", "$(id)", "b" * 33])
def test_only_user_names_reach_sudo(name: str) -> None:
    """What is no plain login name cannot be used to start a kernel as."""
    assert not shell_scripts.is_user_name(name)
    if name:
        with pytest.raises(ValueError, match="not a user name"):
            shell_scripts.startup_text(["true"], {}, "/tmp/k.log", as_user=name)


@pytest.mark.parametrize(("pid", "pgid"), [(0, 0), (1, 1), (-1, -1), (0, 1), (1, 0)])
def test_processes_0_and_1_are_never_signalled(pid: int, pgid: int) -> None:
    """There is no way to signal everything, or the first process."""
    with pytest.raises(ValueError, match="no process"):
        shell_scripts.signal_script(pid, pgid, 9)


@pytest.mark.parametrize("shell", SHELLS)
def test_a_signal_reaches_the_group(shell: str) -> None:
    """The process group is signalled, and the process alone where there is no such group."""
    for pgid_known in (True, False):
        process = subprocess.Popen(["sleep", "60"], start_new_session=pgid_known)
        result = run(shell, shell_scripts.signal_script(process.pid, process.pid, 9))

        assert (result.returncode, process.wait(5)) == (0, -9)


@pytest.mark.parametrize("shell", SHELLS)
def test_only_running_processes_are_alive(shell: str) -> None:
    """Zombies and processes that never were are not alive."""
    living, zombie = subprocess.Popen(["sleep", "60"]), subprocess.Popen(["true"])
    try:
        subprocess.run(["sleep", "0.1"], check=True)
        result = run(shell, shell_scripts.alive_script([living.pid, zombie.pid, 2**22 + 5]))
        assert result.stdout.split() == [str(living.pid).encode()]
    finally:
        living.kill()
        living.wait()
        zombie.wait()


@pytest.mark.parametrize("shell", SHELLS)
def test_only_scripts_with_windows_line_ends_are_named(shell: str, tmp_path: Path) -> None:
    """The program itself if it is a script, and shell scripts among its arguments; no binary, nothing that is fine."""
    files = {
        "it's a script": b"#!/bin/sh\r\nx\r\n",
        "run.sh": b"# no interpreter\r\n",
        "fine.sh": b"#!/bin/sh\nx\r\n",
        "launch.py": b"#!/usr/bin/env python\r\n",
        "binary": b"\x7fELF\r\n",
        "empty.sh": b"",
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    words = [str(tmp_path / name) for name in (*files, "absent.sh")]
    result = run(shell, shell_scripts.windows_script(words))
    assert (result.stdout.decode().splitlines(), result.stderr) == (words[:2], b"")
    for name in ("launch.py", "binary"):
        found = run(shell, shell_scripts.windows_script([str(tmp_path / name)])).stdout
        assert bool(found) == (name == "launch.py")
    assert run(shell, shell_scripts.windows_script(["sh", "-c", "true"])).stdout == b""


def started(shell: str, log: Path, *, private: bool = False) -> int:
    """Start a process that writes a secret to its log, wait until it has, and return the script's exit code."""
    before = log.stat().st_size if log.is_file() else 0
    result = run(shell, shell_scripts.start_script(["echo", "the token is hunter2"], {}, str(log), private=private))
    end = time.monotonic() + 5
    while result.returncode == 0 and log.stat().st_size == before:
        assert time.monotonic() < end, result.stderr
        time.sleep(0.01)
    assert result.returncode or result.stdout.split()[-1].isdigit()
    return result.returncode


@pytest.mark.parametrize("shell", SHELLS)
def test_a_log_is_made_and_appended_to(shell: str, tmp_path: Path) -> None:
    """For the login alone, whether it is new or was open to others; it may be kept small while it is written."""
    folder = tmp_path / "it's a folder"
    log = folder / "kernel-1.log"
    for times in (1, 2):
        assert started(shell, log) == 0
        assert log.read_text() == "the token is hunter2\n" * times
        assert stat.S_IMODE(log.stat().st_mode) == 0o600
        log.chmod(0o644)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert os.listdir(folder) == [log.name]
    result = run(shell, shell_scripts.tail_script(str(log), 1))
    assert (result.stdout, result.stderr) == (b"the token is hunter2\n", b"")


@pytest.mark.parametrize("shell", SHELLS)
def test_a_process_appends_to_its_log_and_holds_nothing_else(shell: str, tmp_path: Path) -> None:
    """The file is cut under its feet when it has grown; the descriptors that the script used are closed."""
    log = tmp_path / "kernel-1.log"
    log.write_text("before\n")
    program = (
        "import fcntl, os; print(fcntl.fcntl(1, fcntl.F_GETFL) & os.O_APPEND, sorted(os.listdir('/proc/self/fd')))"
    )
    assert run(shell, shell_scripts.start_script([sys.executable, "-c", program], {}, str(log))).returncode == 0
    end = time.monotonic() + 10
    while "]" not in log.read_text():
        assert time.monotonic() < end
        time.sleep(0.02)
    assert log.read_text() == f"before\n{os.O_APPEND} ['0', '1', '2', '3']\n"


@pytest.mark.parametrize("make", MADE_FIRST)
@pytest.mark.parametrize("shell", SHELLS)
def test_a_log_that_somebody_else_made_is_not_written(shell: str, make: Callable[[Path], None], tmp_path: Path) -> None:
    """Whatever it is, nothing waits for it, and no secret goes there or to where it leads."""
    make(tmp_path / "kernel-1.log")
    assert started(shell, tmp_path / "kernel-1.log") == shell_scripts.LOG_TAKEN
    for path in tmp_path.iterdir():
        assert not path.is_file() or "hunter2" not in path.read_text()


@pytest.mark.parametrize("make", [pipe, link, second_name, pytest.param(file_of_another, marks=needs_root)])
@pytest.mark.parametrize("shell", SHELLS)
def test_a_log_that_somebody_else_made_is_not_shown(shell: str, make: Callable[[Path], None], tmp_path: Path) -> None:
    """Its last lines are for clients: a link must not show them another file of the login's."""
    make(tmp_path / "kernel-1.log")
    assert run(shell, shell_scripts.tail_script(str(tmp_path / "kernel-1.log"), 5)).stdout == b""


@pytest.mark.parametrize("shell", SHELLS)
def test_a_private_directory_is_the_logins(shell: str, tmp_path: Path) -> None:
    """It is made, and closed to others if it is open; another one's, or a link, is not used."""
    folder = tmp_path / "private"
    for _ in range(2):
        assert started(shell, folder / "kernel-1.log", private=True) == 0
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        folder.chmod(0o755)
    (tmp_path / "link").symlink_to(folder)
    assert started(shell, tmp_path / "link" / "kernel-2.log", private=True) == shell_scripts.FOLDER_TAKEN
    if os.getuid() == 0:
        os.chown(folder, ANOTHER, ANOTHER)
        assert started(shell, folder / "kernel-2.log", private=True) == shell_scripts.FOLDER_TAKEN
    assert os.listdir(folder) == ["kernel-1.log"]


@needs_root
@pytest.mark.parametrize("shell", SHELLS)
def test_a_file_server_may_map_users(shell: str, tmp_path: Path) -> None:
    """Where all that the login makes is shown as another user's, its logs are known by that."""
    log = tmp_path / "kernel-1.log"
    log.touch()
    os.chown(log, ANOTHER, ANOTHER)
    (tmp_path / "bin").mkdir()
    mapped = tmp_path / "bin" / "mktemp"
    mapped.write_text(f'#!/bin/sh\nf=$(/usr/bin/mktemp "$@") && chown {ANOTHER} "$f" && echo "$f"\n')
    mapped.chmod(0o755)
    script = f"PATH={tmp_path / 'bin'}:$PATH\n" + shell_scripts.tail_script(str(log), 1) + "echo fine\n"
    log.write_text("last\n")
    assert run(shell, script.replace("exec tail", "tail")).stdout == b"last\nfine\n"
    assert sorted(os.listdir(tmp_path)) == ["bin", "kernel-1.log"]

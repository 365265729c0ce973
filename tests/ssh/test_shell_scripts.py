"""The texts that remote shells are given, run by the shells of this machine."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from enterprise_gateway.drivers import shell_scripts

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
        [*command, "-s"], input=script.encode(errors="surrogateescape"), capture_output=True, check=False
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

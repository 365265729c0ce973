"""Texts for ``/bin/sh`` on a remote host: pure functions, run by :mod:`.ssh_shell`.

A script reaches its shell through standard input, so neither ``ps`` nor the login shell ever sees it. Every value in
it is quoted; numbers are checked to be numbers.
"""

from __future__ import annotations

import re
import secrets
import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import PurePosixPath

# A shell that runs one script after the other, as told on its standard input: a line with a word to mark answers with;
# then for each script a line with its length and that of its input, and the script. It is the same for every
# connection: all that the remote login shell and `ps` get to see. `head -c` may read ahead, so nothing is sent that
# has not been asked for; each script runs in a shell of its own, so that no variable stays.
RESIDENT = (
    """exec /bin/sh -c 'read -r k; mark() { printf "\\n%s %s\\n" "$k" "$1"; }; mark up; mark up >&2; """
    """while read -r n m; do s=$(head -c "$n"); """
    """if [ "$m" -gt 0 ]; then mark go; head -c "$m" | (eval "$s"); else (eval "$s") < /dev/null; fi; """
    """r=$?; mark "$r"; mark "$r" >&2; done'"""
)

NO_LOG, NO_DIRECTORY, FOLDER_TAKEN, LOG_TAKEN = 73, 74, 75, 76  # what start_script exits with

MAX_VARIABLE_BYTES = 128 * 1024 - 1  # Linux: MAX_ARG_STRLEN, for "NAME=value" with its closing NUL

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_USER = re.compile(r"[a-z_][a-z0-9_.-]{0,31}\Z", re.IGNORECASE)

# Shells refuse to set these, and a refused assignment ends the script; the parent poller of ipykernel would end a
# kernel whose parent, the remote shell, is gone on purpose.
_NOT_EXPORTABLE = frozenset(
    {"UID", "EUID", "PPID", "GROUPS", "OPTIND", "BASHOPTS", "SHELLOPTS", "BASH_VERSINFO", "FUNCNAME", "_"}
    | {"JPY_PARENT_PID", "JPY_INTERRUPT_EVENT"}
)
_SET_BY_SUDO = frozenset({"HOME", "USER", "LOGNAME", "SHELL", "MAIL"})

_MOST_OF_A_TAIL = 65536
_OPENED = "/proc/self/fd/8"  # of a link's kind; hosts that are not Linux do not have it

# Whether a file is the login's; file servers may show what it makes as another user's.
_IS_OURS = (
    """ours() { [ -O "$1" ] || { set -- "$1" "$(mktemp SAMPLE)"; set -- "$(stat -L -c %u -- "$1")" "$2" """
    """"$(stat -c %u -- "$2")"; rm -f -- "$2"; [ -n "$1" ] && [ "$1" = "$3" ]; } 2> /dev/null; }"""
)

# Prefer a session of its own: then the process group's id is the process's. exec keeps the process id throughout.
_OWN_SESSION = 'if command -v setsid >/dev/null; then exec setsid "$@"; fi; exec "$@"'


def is_user_name(name: str) -> bool:
    """Tell whether ``name`` can be a login name; anything else never reaches sudo."""
    return bool(_USER.match(name))


def exportable(env: Mapping[str, str], *, as_user: str = "") -> dict[str, str]:
    """Return the variables of ``env`` that a shell script can export.

    Names that no shell accepts are left out, as are variables that only mean something on the gateway's host; with
    ``as_user`` also those that sudo sets for that user.

    Raises
    ------
    ValueError
        A value holds a NUL or is longer than a Linux process may be given; it is named, its value is not shown.
    """
    left_out = _NOT_EXPORTABLE | (_SET_BY_SUDO if as_user else frozenset())
    kept = {name: value for name, value in env.items() if _NAME.match(name) and name not in left_out}
    for name, value in kept.items():
        if "\0" in value:
            raise ValueError(f"environment variable {name} contains a NUL character")
        if len(name) + 1 + len(value.encode(errors="surrogateescape")) > MAX_VARIABLE_BYTES:
            raise ValueError(f"environment variable {name} is longer than the {MAX_VARIABLE_BYTES} bytes Linux allows")
    return kept


def export_lines(env: Mapping[str, str], *, as_user: str = "") -> str:
    """Return one ``export NAME='value'`` line for each variable that can be exported."""
    return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in exportable(env, as_user=as_user).items())


def startup_text(argv: Sequence[str], env: Mapping[str, str], log_path: str, *, as_user: str = "") -> str:
    """Return the lines that start ``argv`` in the background and print its process id.

    The program has ``env``, a session of its own, nothing to read and ``log_path`` to write to. With ``as_user`` it
    is started by sudo, and the variables are set inside, so that they survive whatever sudo is configured to keep.
    """
    return _startup(argv, env, f">> {shlex.quote(log_path)} 2>&1", as_user)


def _startup(argv: Sequence[str], env: Mapping[str, str], output: str, as_user: str) -> str:
    """Return what :func:`startup_text` does; ``output`` is the shell's redirection."""
    if any("\0" in word for word in argv):
        raise ValueError("a command line must not contain a NUL character")
    prefix = shlex.join(["nohup", "sh", "-c", _OWN_SESSION, "sh"])
    if not as_user:
        return f"{export_lines(env)}{prefix} {shlex.join(argv)} {output} < /dev/null & echo $!\n"
    end = f"EOF-{secrets.token_hex(16)}"
    command, script = sudo_command(argv, env, as_user)
    return f"{prefix} {shlex.join(command)} {output} <<'{end}' & echo $!\n{script}{end}\n"


def sudo_command(argv: Sequence[str], env: Mapping[str, str], as_user: str) -> tuple[list[str], str]:
    """Return the command that runs ``argv`` as another user, and what it has to find on its standard input.

    The variables go that way because sudo drops some of those it is told to keep: its loader's, Python's search path.

    Raises
    ------
    ValueError
        ``as_user`` is no user name, or a variable cannot be given to a process.
    """
    if not is_user_name(as_user):
        raise ValueError("not a user name that a kernel can be started as")
    inside = 's=$(cat) && exec < /dev/null && eval "$s"'
    script = f"{export_lines(env, as_user=as_user)}exec {shlex.join(argv)}\n"
    return ["sudo", "-n", "-H", "-u", as_user, "--", "sh", "-c", inside], script


def start_script(
    argv: Sequence[str],
    env: Mapping[str, str],
    log_path: str,
    *,
    private: bool = False,
    cwd: str = "",
    as_user: str = "",
) -> str:
    """Return a script that prepares the log file (mode 0600, appended), starts ``argv`` and prints two numbers.

    The last line but one is ``1`` when the process has a session of its own, ``0`` when not; the last is its id.
    It exits with one of the numbers above where there can be no such log or there is no ``cwd``, or where the log's
    directory, or the log, belongs to another user.

    Parameters
    ----------
    private
        Whether the log's directory is closed to other users.
    """
    log = shlex.quote(log_path)
    lines = [
        # Whoever has laid a link in between to where there is no file has one made there, an empty one.
        f"if [ -L {log} ] || [ -e {log} ]; then set -- chmod 600",
        f"else set -- :; (umask 077 && : 8<> {log}) || exit {NO_LOG}; fi",
        _open_own(log_path, LOG_TAKEN, private),
        f'if [ -L {_OPENED} ]; then "$@" {_OPENED} && exec 9>> {_OPENED}; else exec 9>> {log}; fi || exit {NO_LOG}',
        "exec 8>&-",
    ]
    if cwd:
        lines.append(f"cd -- {shlex.quote(cwd)} || exit {NO_DIRECTORY}")
    lines.append("if command -v setsid > /dev/null; then echo 1; else echo 0; fi")
    return folder_text(log_path, private) + "\n".join(lines) + "\n" + _startup(argv, env, ">&9 2>&9 9>&-", as_user)


def folder_text(log_path: str, private: bool) -> str:
    """Return a line that makes the directory of a log, or exits; ``private`` is that of :func:`start_script`."""
    folder = shlex.quote(str(PurePosixPath(log_path).parent))
    if not private:
        return f"[ -d {folder} ] || (umask 077 && mkdir -p -- {folder}) || exit {NO_LOG}\n"
    # Of several that start at once only one makes it.
    is_ours = f"[ ! -L {folder} ] && [ -d {folder} ] && [ -O {folder} ] && chmod 700 -- {folder}"
    made = f"[ ! -e {folder} ] && mkdir -m 700 -- {folder} 2> /dev/null"
    return f"{{ {made}; }} || {{ {is_ours}; }} || exit {FOLDER_TAKEN}\n"


def _open_own(log_path: str, status: int, private: bool = False) -> str:
    """Return lines that open a file of the login as descriptor 8, or exit with ``status``.

    They never wait, as opening a pipe to read or to write does. What was opened is looked at afterwards, by the means
    of Linux, as the name may belong to another thing by then, unless its directory is ``private``: a regular file, with
    one name, and that is no link.
    """
    path = shlex.quote(log_path)
    sample = shlex.quote(str(PurePosixPath(log_path).parent / ".kernel-log.XXXXXX"))
    same = ":" if private else f'[ "$(stat -c %d.%i.%h -- {path})" = "$(stat -L -c %d.%i.1 {_OPENED})" ]'
    return (
        f"{_IS_OURS.replace('SAMPLE', sample)}\n"
        f"{{ [ ! -L {path} ] && [ -f {path} ] && command exec 8<> {path}; }} || exit {status}\n"
        f"if [ -L {_OPENED} ]; then [ -f {_OPENED} ] && ours {_OPENED} && {same}; else ours {path}; fi || exit {status}"
    )


def run_script(argv: Sequence[str], env: Mapping[str, str], *, cwd: str = "") -> str:
    """Return a script that becomes ``argv`` with ``env`` added to the login's environment."""
    change = f"cd -- {shlex.quote(cwd)} || exit {NO_DIRECTORY}\n" if cwd else ""
    return f"{change}{export_lines(env)}exec {shlex.join(argv)}\n"


def alive_script(pids: Collection[int]) -> str:
    """Return a script that prints those of ``pids`` that are running processes; zombies do not count.

    On Linux it only reads ``/proc``: one shell and no child processes, however many are asked for, and processes of
    other users are seen as well, which ``kill -0`` reports as absent.
    """
    return (
        f"for p in {_numbers(pids)}; do\n"
        "if [ -r /proc/self/stat ]; then\n"
        "{ read -r s < /proc/$p/stat; } 2> /dev/null || continue\n"
        "case ${s##*)} in ' Z'*|' X'*) continue;; esac\n"
        "else ps -p $p > /dev/null 2>&1 || continue; fi\n"
        "echo $p; done\n"
    )


def signal_script(pid: int, pgid: int, signum: int, *, as_user: str = "") -> str:
    """Return a script that signals the group ``pgid``, or the process ``pid`` where no group is known.

    It exits with 0 when the signal was sent. Groups and processes 0 and 1 are refused: those are never a kernel's.
    """
    sudo = f"{shlex.join(['sudo', '-n', '-u', as_user, '--'])} " if as_user else ""
    targets = [f"-{int(pgid)}"] if pgid > 1 else []
    targets += [str(int(pid))] if pid > 1 else []
    if not targets:
        raise ValueError("there is no process to signal")
    return " || ".join(f"{sudo}kill -s {int(signum)} -- {target}" for target in targets) + "\n"


# Prints "start real-uid effective-uid" of process $1 if it leads a process group. The name of a program, in parentheses
# and between the other fields, may hold blanks and parentheses itself; it has no line breaks, in neither of the files.
_LEADER = """leader() {
{ read -r s < /proc/$1/stat; } 2> /dev/null || return 0
u=; while read -r n r e o; do if [ "$n" = Uid: ]; then u="$r $e"; break; fi; done 2> /dev/null < /proc/$1/status
set -- "$1" ${s##*) }
if [ "$4" = "$1" ]; then echo "${21} $u"; fi
}
"""


def leaders_script(variable: str) -> str:
    """Return a script that prints the process group leaders whose environment has ``variable`` (``NAME=value``).

    Each word and each variable of the output ends with a NUL, which is in no environment: ``login`` and the user id
    of the login; then for each leader ``leader``, its id, "start real-uid effective-uid", its owner's name, and its
    ``KERNEL_ID`` and ``KERNEL_USERNAME`` when they have the form of ours.
    """
    return (
        f"{_LEADER}printf 'login\\0%s\\0' \"$(id -u)\"\n"
        f"for f in $(grep -lszxF -e {shlex.quote(variable)} /proc/[0-9]*/environ); do\n"
        'p=${f#/proc/}; p=${p%/environ}; l=$(leader $p); if [ -z "$l" ]; then continue; fi\n'
        'printf \'leader\\0%s\\0%s\\0%s\\0\' "$p" "$l" "$(stat -c %U /proc/$p 2> /dev/null)"\n'
        "grep -szaxE 'KERNEL_ID=[0-9a-f-]{36}|KERNEL_USERNAME=[A-Za-z0-9_.-]{1,32}' $f; done; true\n"
    )


def end_leader_script(pid: int, start_time: int, uid: int, variable: str) -> str:
    """Return a script that kills a process group if its leader is still the one that :func:`leaders_script` printed.

    It exits with 3 when it is not: the process is gone, or has become another program by now.
    """
    facts = f"{int(start_time)} {int(uid)} {int(uid)}"
    return (
        f"{_LEADER}grep -qszxF -e {shlex.quote(variable)} /proc/{int(pid)}/environ || exit 3\n"
        f'[ "$(leader {int(pid)})" = "{facts}" ] || exit 3\n'
        f"kill -s 9 -- -{int(pid)}\n"
    )


def tail_script(path: str, lines: int) -> str:
    """Return a script that prints the last ``lines`` lines of a file of the login, of no other one, 64 KiB at most."""
    return f"{_open_own(path, LOG_TAKEN)}\ntail -c {_MOST_OF_A_TAIL} <&8 | tail -n {int(lines)}\n"


def windows_script(argv: Sequence[str]) -> str:
    """Return a script that prints those of its scripts in ``argv`` whose first line ends with a carriage return.

    These are the program itself, and words that end in ``.sh``: other interpreters than a shell do not mind.
    """
    words = [word for number, word in enumerate(argv) if number == 0 or word.endswith(".sh")]
    return (
        f'for f in {shlex.join(words)}; do [ -f "$f" ] && [ -r "$f" ] || continue\n'
        'if [ "$(head -n 1 -- "$f" | tail -c 2 | od -An -tx1 | tr -d " ")" != 0d0a ]; then continue; fi\n'
        'if [ "$(head -c 2 -- "$f")" = "#!" ] || [ "$f" != "${f%.sh}" ]; then printf "%s\\n" "$f"; fi; done\n'
    )


def _numbers(values: Iterable[int]) -> str:
    return " ".join(str(int(value)) for value in values)

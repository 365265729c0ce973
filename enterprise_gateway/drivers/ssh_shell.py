"""Remote hosts over SSH: one connection per host and user, many commands and channels on it.

Everything here blocks, with time-outs, and is called from threads.
"""

from __future__ import annotations

import logging
import os
import pwd
import re
import secrets
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, NamedTuple

from ..core import envvars
from ..core.deadline import Deadline
from ..core.errors import HostUnreachableError, KernelLaunchError
from . import shell_scripts
from .ssh_connect import SSHSettings, connect, hang_up, transport_of

if TYPE_CHECKING:
    import paramiko

MAX_RESIDENTS = 3  # commands at once on a connection, each a session of the 10 that sshd grants by default
MAX_OUTPUT = 16 << 20  # bytes of one command

_WORTH_WAITING = 0.5  # seconds
_FACTS = re.compile(rb"(?P<start>\d{1,20}) (?P<uid>\d{1,10}) (?P=uid)")
_VARIABLE = re.compile(rb"KERNEL_ID=[0-9a-f-]{36}|KERNEL_USERNAME=[A-Za-z0-9_.-]{1,32}")


class Result(NamedTuple):
    """What a remote command left: its exit status (-1: ended by a signal), output and error output."""

    status: int
    stdout: bytes
    stderr: bytes

    @property
    def complaint(self) -> str:
        """The error output (or the output) as one line, for messages."""
        return " ".join((self.stderr or self.stdout).decode(errors="replace").split())[-500:]


class Leader(NamedTuple):
    """The leader of a process group on a host.

    ``uid`` and ``owner`` are whose it is, ``is_ours`` whether that is our login, ``start_time`` is in a unit of the
    host's. ``kernel_id`` and ``username`` are what its environment says of itself, empty when it says nothing usable.
    """

    pid: int
    start_time: int
    uid: int
    owner: str
    is_ours: bool
    kernel_id: str
    username: str


def leaders_in(output: bytes) -> list[Leader]:
    """Return what the output of :func:`shell_scripts.leaders_script` tells; what is not of its form is left out.

    Whoever has set the variable that was searched for has set the others, too, to what he likes. A process whose real
    and effective user differ is left out: its environment is not its owner's.
    """
    words = output.split(b"\0")
    login = words[1] if words[0] == b"login" and len(words) > 1 else b""
    leaders: list[Leader] = []
    for number in [number for number, word in enumerate(words) if word == b"leader"]:
        pid, facts, owner, *variables = [*words[number + 1 : number + 6], b"", b"", b""]
        match = _FACTS.fullmatch(facts)
        if not pid.isdigit() or match is None:
            continue
        found = dict(variable.decode().split("=") for variable in reversed(variables) if _VARIABLE.fullmatch(variable))
        leaders.append(
            Leader(
                int(pid),
                int(match["start"]),
                int(match["uid"]),
                owner.decode(errors="replace"),
                match["uid"] == login,
                found.get("KERNEL_ID", ""),
                found.get("KERNEL_USERNAME", ""),
            )
        )
    return leaders


class OutcomeUnknownError(HostUnreachableError):
    """The host was lost after a command had been sent: it may or may not have been run."""


class FolderTakenError(KernelLaunchError):
    """The directory that a log should be in was made by another user."""


class SSHShell:
    """Commands and forwarded channels on one host, as one user; safe to use from many threads.

    The connection is made when it is first needed, shared by all callers, kept alive, and made again by the next
    call after it broke. Processes started here outlive it.

    Parameters
    ----------
    host
        Name or address, as it stands in ``remote_hosts`` and in known_hosts.
    settings
        Port, user, credentials and host-key rules.
    """

    def __init__(self, host: str, settings: SSHSettings, log: logging.Logger | None = None) -> None:
        self.host = host
        self.settings = settings
        self.user = settings.user or pwd.getpwuid(os.getuid()).pw_name
        self.log = log or logging.getLogger(__name__)
        self.connections_made = 0
        self._client: paramiko.SSHClient | None = None
        self._connecting = threading.Lock()
        self._failures = 0
        self._failure: KernelLaunchError | None = None  # the last one
        self._residents = _Residents(self._new_resident, host)
        self._closed = False

    def __repr__(self) -> str:
        return f"SSHShell({self.user}@{self.host}:{self.settings.port})"

    # -- verbs -----------------------------------------------------------------------------------------------------

    def run(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        stdin: bytes = b"",
        cwd: str = "",
        timeout: float = 30.0,
    ) -> Result:
        """Run ``argv`` to its end and return what it left.

        Raises
        ------
        HostUnreachableError
            No connection, or no end within ``timeout`` seconds.
        HostAuthenticationError
            The host refused us, or its key is not the known one.
        """
        return self._script(shell_scripts.run_script(argv, env or {}, cwd=cwd), stdin=stdin, timeout=timeout)

    def start_detached(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        log_path: str,
        private: bool = False,
        cwd: str = "",
        as_user: str = "",
        timeout: float = 30.0,
    ) -> tuple[int, int]:
        """Start ``argv`` so that it outlives the connection, and return its process id and process group id.

        Its output is appended to ``log_path`` (mode 0600), with ``private`` in a directory closed to other users.
        The group id is 0 where the host has no ``setsid``.

        Raises
        ------
        FolderTakenError
            The directory for the log must be private, but belongs to another user.
        KernelLaunchError
            The host answered, but could not start it: the log or the working directory is not usable.
        """
        script = shell_scripts.start_script(argv, env, log_path, private=private, cwd=cwd, as_user=as_user)
        result = self._script(script, timeout=timeout)
        words = result.stdout.split()
        if result.status != 0 or len(words) < 2 or not words[-1].isdigit():
            what = {
                shell_scripts.NO_LOG: f"log file {log_path} cannot be written",
                shell_scripts.NO_DIRECTORY: f"no directory {cwd}",
                shell_scripts.FOLDER_TAKEN: f"the directory of {log_path} is not {self.user}'s",
                shell_scripts.LOG_TAKEN: f"log file {log_path} cannot be written, as it is no file of {self.user}'s: "
                "remove it",
            }.get(result.status)
            kind = FolderTakenError if result.status == shell_scripts.FOLDER_TAKEN else KernelLaunchError
            raise kind(
                f"{self.host} did not start the kernel: {what or result.complaint or f'exit status {result.status}'}"
            )
        pid = int(words[-1])
        return pid, pid if words[-2] == b"1" else 0

    def signal(self, pid: int, pgid: int, signum: int, *, as_user: str = "", timeout: float = 30.0) -> bool:
        """Send ``signum`` to the process group, or to the process where no group is known.

        Returns
        -------
        bool
            False when there is no such process any more.

        Raises
        ------
        KernelLaunchError
            The process is there, but may not be signalled.
        """
        target = pid if pid > 1 else pgid
        if signum == 0:
            return bool(self.alive([target], timeout=timeout))
        result = self._script(shell_scripts.signal_script(pid, pgid, signum, as_user=as_user), timeout=timeout)
        if result.status == 0:
            return True
        if self.alive([target], timeout=timeout):
            raise KernelLaunchError(f"{self.host} did not send signal {signum} to {target}: {result.complaint}")
        return False

    def alive(self, pids: Collection[int], *, timeout: float = 30.0) -> set[int]:
        """Return those of ``pids`` that are running, in one command however many they are."""
        if not pids:
            return set()
        result = self._script(shell_scripts.alive_script(pids), timeout=timeout)
        return {int(word) for word in result.stdout.split() if word.isdigit()}

    def leaders(self, variable: str, *, timeout: float = 30.0) -> list[Leader]:
        """Return the process groups whose leader has ``variable`` (``NAME=value``) in an environment that we may read.

        A login that is root's may read everybody's.
        """
        return leaders_in(self._script(shell_scripts.leaders_script(variable), timeout=timeout).stdout)

    def end_leader(self, leader: Leader, variable: str, *, timeout: float = 30.0) -> bool:
        """Kill the process group of one of :meth:`leaders`, if it is still that, and return whether it was.

        Raises
        ------
        KernelLaunchError
            The process is there, but may not be signalled.
        """
        script = shell_scripts.end_leader_script(leader.pid, leader.start_time, leader.uid, variable)
        result = self._script(script, timeout=timeout)
        if result.status not in (0, 3):
            raise KernelLaunchError(f"{self.host} did not end process {leader.pid}: {result.complaint}")
        return result.status == 0

    def tail(self, path: str, lines: int = 20, *, timeout: float = 10.0) -> str:
        """Return the last lines of a file of the login's; empty when it cannot be read, or is another user's."""
        return self._script(shell_scripts.tail_script(path, lines), timeout=timeout).stdout.decode(errors="replace")

    def windows_scripts(self, argv: Sequence[str], *, timeout: float = 10.0) -> list[str]:
        """Return the scripts among the words of a command line that cannot run, as their lines end like on Windows."""
        output = self._script(shell_scripts.windows_script(argv), timeout=timeout).stdout
        return [line for line in output.decode(errors="replace").split("\n") if line]

    def open_channel(self, host: str, port: int, on_readable: Callable[[], None], *, timeout: float = 10.0) -> Forward:
        """Open a forwarded TCP connection from the SSH host to ``host:port`` (for :mod:`..transport.tunnels`).

        Raises
        ------
        ConnectionRefusedError
            The SSH host is reached, but ``host:port`` is not.
        HostUnreachableError, HostAuthenticationError
            The SSH host is not reached.
        """
        import paramiko

        def open_forward(transport: paramiko.Transport) -> paramiko.Channel:
            return transport.open_channel("direct-tcpip", (host, port), ("127.0.0.1", 0), timeout=timeout)

        try:
            return Forward(self._open(open_forward, Deadline(timeout)), on_readable)
        except paramiko.ChannelException as error:
            raise ConnectionRefusedError(f"{self.host} cannot reach {host}:{port}: {error.text}") from error

    # -- the connection ----------------------------------------------------------------------------------------------

    @property
    def connected(self) -> bool:
        """Whether the connection is open, to the best of our knowledge."""
        return self._live() is not None

    def connect(self, timeout: float | None = None) -> None:
        """Make the connection now, unless it stands; raises as :meth:`run` does."""
        self._transport(Deadline(timeout or self.settings.connect_timeout))

    def disconnect(self) -> None:
        """Drop the connection; the next call makes a new one."""
        client, self._client = self._client, None
        if client is not None:
            hang_up(transport_of(client))
            client.close()

    def close(self) -> None:
        """Drop the connection for good."""
        self._closed = True
        self.disconnect()

    def _script(self, script: str, *, stdin: bytes = b"", timeout: float) -> Result:
        """Run a script in one of the connection's resident shells."""
        deadline = Deadline(timeout)
        self._transport(deadline)
        with self._residents.taken(deadline) as resident:
            try:
                return resident.ask(script.encode(errors="surrogateescape"), stdin, deadline)
            except TimeoutError as error:
                raise OutcomeUnknownError(f"{self.host}: no result within {timeout:g} seconds") from error
            except OSError as error:
                raise OutcomeUnknownError(f"{self.host}: the connection was lost ({error})") from error

    def _new_resident(self, deadline: Deadline) -> _Resident:
        import paramiko

        try:
            channel = self._open(lambda transport: transport.open_session(timeout=_step(deadline)), deadline)
            return _Resident(channel, deadline)
        except _LoginShellError as error:
            raise HostUnreachableError(
                f"{self.host}: the login shell of {self.user} does not run commands: {error}"
            ) from error
        except TimeoutError as error:
            raise HostUnreachableError(f"{self.host}: the login shell gave no answer") from error
        except paramiko.ChannelException as error:
            raise _SessionRefusedError(f"{self.host} grants no session: {error.text}") from error
        except (paramiko.SSHException, OSError, EOFError) as error:
            raise HostUnreachableError(f"{self.host}: the connection was lost") from error

    def _open(self, open_on: Callable[[paramiko.Transport], paramiko.Channel], deadline: Deadline) -> paramiko.Channel:
        """Open a channel; a connection that turns out to be broken is made again, once."""
        import paramiko

        for attempt in (1, 2):
            transport = self._transport(deadline)
            try:
                return open_on(transport)
            except paramiko.ChannelException:
                raise
            except (paramiko.SSHException, OSError, EOFError) as error:
                # Of several refusals at the same time paramiko gives only one its reason.
                if transport.is_active() and "Timeout" not in str(error):
                    raise paramiko.ChannelException(2, "open failed") from error
                # The answer did not come, or the connection ended: either way nothing was started on it.
                hang_up(transport)
                if attempt == 2:
                    raise HostUnreachableError(f"{self.host}: the connection broke") from error
        raise AssertionError("unreachable")

    def _transport(self, deadline: Deadline) -> paramiko.Transport:
        """Return the live connection; of many callers one connects, and the others share the result."""
        transport = self._live()
        if transport is not None:
            return transport
        failures = self._failures
        if not self._connecting.acquire(timeout=deadline.remaining):
            raise HostUnreachableError(f"{self.host}: no connection within {deadline.seconds:g} seconds")
        try:
            if self._closed:
                raise HostUnreachableError(f"{self.host}: the gateway is shutting down")
            if self._failure is not None and self._failures != failures:
                raise type(self._failure)(str(self._failure)) from self._failure
            return self._live() or self._make_connection(deadline)
        finally:
            self._connecting.release()

    def _live(self) -> paramiko.Transport | None:
        client = self._client
        transport = client.get_transport() if client is not None else None
        return transport if transport is not None and transport.is_active() else None

    def _make_connection(self, deadline: Deadline) -> paramiko.Transport:
        self.disconnect()
        try:
            self._client = client = connect(self.host, self.user, self.settings, deadline)
        except KernelLaunchError as error:
            self._failure = error
            self._failures += 1
            raise
        self.connections_made += 1
        self.log.info("Connected to %s as %s.", self.host, self.user)
        return transport_of(client)


class SSHPool:
    """The shells of all hosts: one for each host, port and user."""

    def __init__(self, log: logging.Logger | None = None) -> None:
        self._log = log
        self._shells: dict[tuple[str, int, str], SSHShell] = {}
        self._lock = threading.Lock()

    def shell(self, host: str, settings: SSHSettings | None = None) -> SSHShell:
        """Return the shell of ``host``; nothing is connected yet."""
        settings = settings or SSHSettings.from_environment()
        with self._lock:
            key = (host, settings.port, settings.user)
            if key not in self._shells:
                logging.getLogger("paramiko").setLevel(envvars.EG_SSH_LOG_LEVEL())
                logging.getLogger("paramiko.transport").addFilter(_is_news)
                self._shells[key] = SSHShell(host, settings, self._log)
            return self._shells[key]

    def close(self) -> None:
        """Close all connections; called when the gateway ends."""
        with self._lock:
            shells, self._shells = list(self._shells.values()), {}
        for shell in shells:
            shell.close()


def _is_news(record: logging.LogRecord) -> bool:
    """Drop what paramiko logs as an error when a port is closed or one session more is not granted."""
    return "open FAILED" not in record.getMessage()


class Forward:
    """A forwarded TCP connection that never blocks its caller.

    ``on_readable`` is called, from any thread and often, when there may be something to receive.
    """

    def __init__(self, channel: paramiko.Channel, on_readable: Callable[[], None]) -> None:
        self._channel = channel
        channel.setblocking(False)
        channel.in_buffer.set_event(_Notifier(on_readable))

    @property
    def closed(self) -> bool:
        """Whether the channel is closed, or its connection gone."""
        return self._channel.closed

    def recv(self, size: int) -> bytes | None:
        """Return what has arrived; None: nothing yet; empty: the other side has ended."""
        try:
            data: bytes = self._channel.recv(size)
        except TimeoutError:
            return None
        return data

    def send(self, data: bytes | memoryview) -> int:
        """Send what fits the window now and return how much it was.

        Raises
        ------
        OSError
            The channel or its connection is closed.
        """
        try:
            sent: int = self._channel.send(bytes(data))
        except TimeoutError:
            return 0
        except EOFError as error:
            raise ConnectionResetError("the SSH connection ended") from error
        if sent == 0:
            raise BrokenPipeError("the forwarded connection is closed")
        return sent

    def shutdown_write(self) -> None:
        """Tell the other side that nothing more will come."""
        with suppress(OSError, EOFError):
            self._channel.shutdown_write()

    def close(self) -> None:
        """Close the channel; the connection below it stays."""
        with suppress(OSError, EOFError):
            self._channel.close()


class _Notifier(threading.Event):
    """The event that paramiko sets when a buffer is filled or closed; readers read until there is nothing left."""

    def __init__(self, on_set: Callable[[], None]) -> None:
        super().__init__()
        self._on_set = on_set

    def set(self) -> None:
        """Tell the reader, each time anew."""
        self._on_set()


class _LoginShellError(Exception):
    """The login shell ended instead of running what it was given; the text is what it said."""


class _SessionRefusedError(HostUnreachableError):
    """The server does not grant one more session on the connection."""


class _Residents:
    """The shells that wait on a host for scripts to run; starting one costs a whole login, so they stay.

    A shell that failed to answer is closed and not used again.
    """

    def __init__(self, new: Callable[[Deadline], _Resident], host: str) -> None:
        self._new = new
        self._host = host
        self._idle: list[_Resident] = []
        self._taken = 0
        self._limit = MAX_RESIDENTS  # lower when the server grants fewer sessions
        self._changed = threading.Condition()

    @contextmanager
    def taken(self, deadline: Deadline) -> Iterator[_Resident]:
        resident = self._take(deadline)
        try:
            yield resident
        except BaseException:
            resident.close()
            raise
        finally:
            with self._changed:
                self._taken -= 1
                if resident.usable:
                    self._idle.append(resident)
                self._changed.notify()

    def _take(self, deadline: Deadline) -> _Resident:
        while True:
            with self._changed:
                # A busy shell is free sooner than a new one has logged in, unless its command is a long one.
                if self._taken:
                    self._changed.wait_for(lambda: self._idle, min(_WORTH_WAITING, deadline.remaining))
                if not self._changed.wait_for(lambda: self._taken < self._limit, deadline.remaining):
                    raise HostUnreachableError(f"{self._host}: all shells were busy for {deadline.seconds:g} seconds")
                self._taken += 1
                resident = self._usable()
            if resident is not None:
                return resident
            try:
                return self._new(deadline)
            except BaseException as error:
                with self._changed:
                    self._taken -= 1
                    self._changed.notify()
                    others = self._taken
                    if not isinstance(error, _SessionRefusedError) or not others:
                        raise
                    self._limit = others

    def _usable(self) -> _Resident | None:
        while self._idle:
            resident = self._idle.pop()
            if resident.usable:
                return resident
            resident.close()
        return None


class _Resident:
    """One :data:`shell_scripts.RESIDENT` shell; used by one thread at a time."""

    def __init__(self, channel: paramiko.Channel, deadline: Deadline) -> None:
        self._channel = channel
        self._mark = secrets.token_hex(12)
        self._outputs = (bytearray(), bytearray())
        self._arrived = threading.Event()
        # Not channel.fileno(): paramiko never closes the pipe it makes for it.
        for buffer in (channel.in_buffer, channel.in_stderr_buffer):
            buffer.set_event(_Notifier(self._arrived.set))
        try:
            channel.exec_command(shell_scripts.RESIDENT)  # nosec B601 # a constant
            self._send(f"{self._mark}\n".encode(), deadline)
            self._answer(deadline)  # drops what the login shell's start-up files printed
        except ConnectionResetError as error:
            channel.status_event.wait(_step(deadline))
            self.close()
            if channel.exit_status < 0:
                raise  # it has not ended by itself: the connection was lost
            raise _LoginShellError(self._last_words()) from error
        except BaseException:
            self.close()
            raise

    def _last_words(self) -> str:
        """Return what a shell that has ended printed, as one line, or else its exit status."""
        self._take_all()
        said = Result(0, bytes(self._outputs[0]), bytes(self._outputs[1])).complaint
        return said or f"it ended with exit status {self._channel.exit_status}"

    @property
    def usable(self) -> bool:
        """Whether the shell still listens, to the best of our knowledge."""
        return not (self._channel.closed or self._channel.eof_received)

    def close(self) -> None:
        """Close the channel; a script that still runs loses its output."""
        with suppress(OSError, EOFError):
            self._channel.close()

    def ask(self, script: bytes, stdin: bytes, deadline: Deadline) -> Result:
        """Run ``script`` and return what it left.

        Raises
        ------
        TimeoutError
            It did not end in time; the shell is of no use any more.
        OSError
            The connection was lost.
        """
        self._send(b"%d %d\n%s" % (len(script), len(stdin), script), deadline)
        if stdin:
            self._part(0, deadline)
            self._send(stdin, deadline)
        return self._answer(deadline)

    def _send(self, data: bytes, deadline: Deadline) -> None:
        self._channel.settimeout(max(deadline.remaining, 0.01))
        try:
            self._channel.sendall(data)
        except TimeoutError:
            raise
        except (OSError, EOFError) as error:  # paramiko's own, when the channel is closed already
            raise ConnectionResetError("the SSH connection ended") from error

    def _answer(self, deadline: Deadline) -> Result:
        stdout, status = self._part(0, deadline)
        stderr, _ = self._part(1, deadline)
        return Result(int(status) if status.isdigit() else 0, stdout, stderr)

    def _part(self, which: int, deadline: Deadline) -> tuple[bytes, bytes]:
        """Return what one of the two outputs held up to the next mark, and the word that follows the mark."""
        buffer, mark = self._outputs[which], f"\n{self._mark} ".encode()
        searched = 0
        while True:
            start = buffer.find(mark, searched)
            end = buffer.find(b"\n", start + len(mark)) if start >= 0 else -1
            if end >= 0:
                text, word = bytes(buffer[:start]), bytes(buffer[start + len(mark) : end])
                del buffer[: end + 1]
                return text, word
            if len(buffer) > MAX_OUTPUT:
                raise ConnectionResetError(f"a command printed more than {MAX_OUTPUT} bytes")
            searched = max(0, len(buffer) - len(mark)) if start < 0 else start
            self._receive(deadline)

    def _receive(self, deadline: Deadline) -> None:
        """Wait for output and take all there is."""
        channel = self._channel
        if not (channel.recv_ready() or channel.recv_stderr_ready()):
            if not self.usable:
                raise ConnectionResetError("the remote shell ended")
            if not self._arrived.wait(deadline.remaining):
                raise TimeoutError
            self._arrived.clear()
        self._take_all()

    def _take_all(self) -> None:
        while self._channel.recv_ready():
            self._outputs[0].extend(self._channel.recv(65536))
        while self._channel.recv_stderr_ready():
            self._outputs[1].extend(self._channel.recv_stderr(65536))


def _step(deadline: Deadline) -> float:
    """Return how long one step may take: a host that is gone is noticed well before a long command's time is up."""
    return min(10.0, max(deadline.remaining, 0.01))

"""Signals for a kernel, through the communication port of its launcher."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import json
import socket
import threading
from typing import Any

from ..core.deadline import Deadline
from ..core.errors import GatewayError

_MAX_LINE = 65536
_MAX_REASON = 200
_CONTEXT = b"EG-comm-v2"


class CommPortError(GatewayError):
    """The communication port did not do what it was asked to; the kernel may nevertheless be alive."""


class CommPort:
    """The verbs of a launcher's communication port, for use in threads (``offload``).

    With a ``secret`` version 2 is spoken: commands are authenticated and answered, and the connection is kept open
    until :meth:`close`, so that its end tells of the kernel's end (:meth:`duplicate` is there to be watched for
    that). Without one, version 1: each command is a connection of its own, and nothing is answered.

    Parameters
    ----------
    host, port
        Where the launcher listens, or the near end of a tunnel to there.
    kernel_id
        For messages.
    secret
        The launch secret, when the kernel reported with payload version 2.
    timeout
        Seconds for each step: connecting, and each answer.
    """

    def __init__(
        self, host: str, port: int, *, kernel_id: str, secret: bytes | None = None, timeout: float = 5.0
    ) -> None:
        self.host = host
        self.port = port
        self.kernel_id = kernel_id
        self._key = hmac.new(secret, _CONTEXT, hashlib.sha256).digest() if secret else None
        self._timeout = timeout
        self._lock = threading.Lock()  # held while talking
        self._handle_lock = threading.Lock()  # held only for moments, also on the event loop
        self._connection: socket.socket | None = None
        self._buffer = b""
        self._challenge = ""
        self._sequence = 0

    def __repr__(self) -> str:
        return f"<CommPort of kernel {self.kernel_id} at {self.host}:{self.port}>"

    @property
    def is_authenticated(self) -> bool:
        """Whether version 2 is spoken."""
        return self._key is not None

    def probe(self) -> bool:
        """Tell whether the kernel's launcher is there."""
        return self.signal(0)

    def signal(self, signum: int) -> bool:
        """Have the launcher signal its kernel; return False when there is no launcher any more.

        Raises
        ------
        CommPortError
            The launcher refused the signal.
        OSError
            The host did not answer in time or cannot be reached: whether the kernel lives is not known.
        """
        return self._send({"signum": int(signum)})

    def shutdown(self) -> bool:
        """Tell the launcher to stop listening; return False when it has done so already.

        Raises
        ------
        CommPortError, OSError
            As for :meth:`signal`.
        """
        sent = self._send({"shutdown": 1})
        self.close()
        return sent

    def duplicate(self) -> socket.socket | None:
        """Return another handle on the connection kept open, for :func:`connection_ended`; None when there is none.

        A handle of its own: a thread may close the connection at any moment, and its descriptor be reused.
        """
        with self._handle_lock:
            if self._connection is None:
                return None
            handle = self._connection.dup()
        handle.setblocking(False)  # else it would wait as long as the original, also for what a thread has read before
        return handle

    def close(self) -> None:
        """Close the connection kept open, if any; the next command makes a new one."""
        with self._lock:
            self._disconnect()

    def _send(self, command: dict[str, Any]) -> bool:
        with self._lock:
            try:
                if self._key is None:
                    self._send_v1(command)
                else:
                    self._send_v2(self._key, json.dumps(command))
            except (ConnectionRefusedError, EOFError):
                return False
            return True

    def _send_v1(self, command: dict[str, Any]) -> None:
        with socket.create_connection((self.host, self.port), self._timeout) as connection:
            connection.sendall(json.dumps(command).encode())
            connection.shutdown(socket.SHUT_WR)

    def _send_v2(self, key: bytes, command: str) -> None:
        """Send on the open connection; when that, or a new one, turns out to have ended, once more on a new one.

        A listener that is just ending resets connections that it has not accepted yet; after that it refuses them.
        """
        try:
            self._exchange(self._connection or self._connect(), key, command)
        except ConnectionRefusedError:
            raise
        except (EOFError, ConnectionError):
            self._disconnect()
            self._exchange(self._connect(), key, command)

    def _connect(self) -> socket.socket:
        connection = socket.create_connection((self.host, self.port), self._timeout)
        with self._handle_lock:
            self._connection = connection
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._buffer, self._sequence = b"", 0
        try:
            self._challenge = read_greeting(self._read_line(connection))
        except CommPortError as error:
            self._disconnect()
            raise CommPortError(f"The listener of kernel {self.kernel_id} {error}") from error
        except BaseException:
            self._disconnect()
            raise
        return connection

    def _exchange(self, connection: socket.socket, key: bytes, command: str) -> None:
        self._sequence += 1
        signed = f"{self._challenge}.{self._sequence}.{command}".encode()
        mac = hmac.new(key, signed, hashlib.sha256).hexdigest()
        line = json.dumps({"seq": self._sequence, "command": command, "mac": mac})
        try:
            connection.sendall(line.encode() + b"\n")
            reason = read_answer(self._read_line(connection), self._sequence)
        except CommPortError as error:
            self._disconnect()
            raise CommPortError(f"The listener of kernel {self.kernel_id} {error}") from error
        except BaseException:
            self._disconnect()  # an answer that comes later must not be taken for the next command's
            raise
        if reason:
            raise CommPortError(f"The listener of kernel {self.kernel_id} refused {command}: {reason}")

    def _read_line(self, connection: socket.socket) -> bytes:
        """Return the next line, within the time allowed for all of it."""
        deadline = Deadline(self._timeout)
        while b"\n" not in self._buffer:
            connection.settimeout(max(deadline.remaining, 0.001))
            data = connection.recv(_MAX_LINE)
            if not data:
                raise EOFError
            self._buffer += data
            if len(self._buffer) > _MAX_LINE:
                raise CommPortError("sent too long a line")
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _disconnect(self) -> None:
        with self._handle_lock:
            connection, self._connection = self._connection, None
            if connection is not None:
                # Those who watch a duplicate see the end too.
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
                connection.close()


def read_greeting(line: bytes) -> str:
    """Return the challenge in the first line of a connection.

    Raises
    ------
    CommPortError
        It is no greeting of version 2; the text lacks whose. Nothing else is raised, whatever the line holds.
    """
    greeting = _object(line)
    challenge = greeting.get("challenge")
    if greeting.get("version") != 2 or not isinstance(challenge, str) or len(challenge) < 32 or not challenge.isascii():
        raise CommPortError("does not speak version 2")
    return challenge


def read_answer(line: bytes, sequence: int) -> str:
    """Return why a command was refused, as text for a log line; empty when it was carried out.

    Raises
    ------
    CommPortError
        The line does not answer the command of that number; the text lacks whose. Nothing else is raised.
    """
    answer = _object(line)
    if answer.get("seq") != sequence:
        raise CommPortError("answered something else")
    if answer.get("ok") is True:
        return ""
    reason = answer.get("error")
    if not isinstance(reason, str) or not reason:
        return "no reason given"
    return "".join(letter if letter.isprintable() else "?" for letter in reason[:_MAX_REASON])


def _object(line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise CommPortError("sent no JSON object")
    return value


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


async def connection_ended(connection: socket.socket) -> None:
    """Return when the connection of :meth:`CommPort.duplicate` has ended, at either end; awaited by process proxies.

    The duplicate is closed.
    """
    loop = asyncio.get_running_loop()
    with connection:
        while True:
            readable: asyncio.Future[None] = loop.create_future()
            loop.add_reader(connection, _resolve, readable)
            try:
                await readable
            finally:
                loop.remove_reader(connection)
            try:
                if not connection.recv(1, socket.MSG_PEEK):
                    return
            except BlockingIOError:
                continue
            except OSError:
                return
            await asyncio.sleep(0.05)  # an answer that a thread is about to read

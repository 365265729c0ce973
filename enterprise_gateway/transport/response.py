"""The server that launchers tell how their kernel can be reached."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import logging
import random
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Container
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, cast

from ..core.connection import ConnectionInfo
from ..core.deadline import Deadline
from ..core.errors import KernelLaunchError, LaunchTimeoutError, PayloadError
from ..core.offload import offload
from ..core.payload import Envelope, KeyPair, Report, open_legacy, parse

if TYPE_CHECKING:
    from typing_extensions import Self

MAX_PAYLOAD_BYTES = 65536
MAX_CONNECTIONS = 512
CONNECTION_SECONDS = 10.0
MAX_REMEMBERED_REJECTIONS = 5
MAX_REASON = 240
MAX_CONFLICTS = 5  # per kernel that are logged
CONFLICT_SECONDS = 60.0
MAX_WARNINGS_PER_MINUTE = 60
MAX_QUEUED_MESSAGES = 1000
_VERDICTS = {
    (True, False): "The first one had the secret of the launch: another party tries to take over the kernel.",
    (False, True): "Only the second one had the secret of the launch: the kernel was taken over.",
    (False, False): "Neither had the secret of the launch: the kernel may have been taken over.",
}
_RESET = struct.pack("ii", 1, 0)
_BACKLOG = 1024  # connections that the system holds for us
_ACCEPTED_AT_ONCE = 64  # how many of them one turn of the loop takes


@dataclass(frozen=True)
class Conflict:
    """Two different reports for one kernel, and which of them the launch's secret vouches for."""

    kernel_id: str
    accepted_from: str
    refused_from: str
    is_proven: bool
    """Whether the one that was accepted is the launcher's for certain."""
    is_forged: bool
    """Whether it is another's for certain: only the one that came too late was made with the secret."""


class Expectation:
    """One kernel that is being launched and may report once; made by :meth:`ResponseServer.expect`.

    Use it as a context manager, or call :meth:`close` whatever happens. Messages that name this kernel but cannot be
    accepted do not end the launch (anybody could send one): ``rejections`` holds their reasons, for the operator.
    """

    def __init__(
        self,
        server: ResponseServer,
        kernel_id: str,
        *,
        secret: bytes | None = None,
        minimum_version: int = 1,
        demanded_by: str = "",
    ) -> None:
        self.kernel_id = kernel_id
        self.secret = secret
        self.minimum_version = minimum_version
        self.rejections: list[str] = []
        self.conflicts: list[Conflict] = []
        self._demanded_by = demanded_by
        self._origins: Container[str] | None = None
        self._place = ""
        self._report: Report | None = None
        self._peer = ""
        self._heard_until = float("inf")
        self._server = server
        self._future: asyncio.Future[ConnectionInfo] = asyncio.get_running_loop().create_future()

    def __repr__(self) -> str:
        return f"<Expectation of kernel {self.kernel_id}>"

    def restrict(self, origins: Container[str], place: str) -> None:
        """Take reports that prove nothing about their sender, those before version 2, from these addresses only.

        ``place`` is how a refusal calls them.
        """
        self._origins, self._place = origins, place

    @property
    def done(self) -> bool:
        """Whether the kernel has reported, or is no longer expected."""
        return self._future.done()

    @property
    def is_heard(self) -> bool:
        """Whether reports for this kernel are looked at: until it has reported, and for some time after that."""
        return time.monotonic() < self._heard_until

    @property
    def payload_version(self) -> int | None:
        """The version in which the kernel has reported."""
        return self._report.version if self._report is not None else None

    @property
    def doubt(self) -> Conflict | None:
        """The conflict because of which the accepted report may be another's; None where there is no such doubt."""
        doubts = [conflict for conflict in self.conflicts if not conflict.is_proven]
        return max(doubts, key=lambda conflict: conflict.is_forged, default=None)

    async def wait(self, deadline: Deadline) -> ConnectionInfo:
        """Return what the launcher reports; may be called again after it ran out of time.

        Raises
        ------
        LaunchTimeoutError
            Nothing acceptable came before the deadline; the message quotes what was refused.
        KernelLaunchError
            The expectation was closed meanwhile, as when the gateway stops.
        """
        await asyncio.wait([self._future], timeout=deadline.remaining)
        if self._future.cancelled():
            raise KernelLaunchError(f"The launch of kernel {self.kernel_id} was cancelled")
        if self._future.done():
            return self._future.result()
        message = (
            f"KernelID: '{self.kernel_id}' launch timeout due to: Waited too long ({deadline.seconds:g}s) "
            "to get connection file"
        )
        if self.rejections:
            message += "; refused responses: " + "; ".join(self.rejections)
        raise LaunchTimeoutError(message)

    def accept(self, report: Report, peer: str) -> Conflict | None:
        """Take the first acceptable report; called by the server. Returns what is new about a second, different one.

        Raises
        ------
        PayloadError
            The kernel has already reported, its kernelspec demands a later version, or the report came from elsewhere.
        """
        if self._report is not None:
            return self._contradict(self._report, report, peer)
        if max(report.version, 1) < self.minimum_version:  # whether 0 is allowed at all, the server knows
            raise PayloadError(
                f"payload version {report.version} is refused: this kernel must use {self.minimum_version}"
                f"{self._demanded_by}"
            )
        if report.version < 2 and self._origins is not None and peer not in self._origins:
            raise PayloadError(
                f"payload version {report.version} is taken from {self._place} only; if {peer} is an address of it, "
                "add it to payload_v1_from of the kernelspec, or use a launcher of version 2"
            )
        if self._future.done():
            raise PayloadError("the kernel is no longer expected")
        self._report, self._peer = report, peer
        self._heard_until = time.monotonic() + self._server.conflict_seconds
        self._future.set_result(report.connection_info)
        return None

    def _contradict(self, accepted: Report, report: Report, peer: str) -> Conflict:
        conflict = Conflict(
            self.kernel_id,
            self._peer,
            peer,
            is_proven=accepted.version == 2,
            is_forged=accepted.version < 2 <= report.version,
        )
        is_same = report.connection_info == accepted.connection_info  # a launcher that was not sure, or a replay
        is_one_too_many = len(self.conflicts) >= MAX_CONFLICTS and not conflict.is_forged  # anybody can make others
        if is_same or conflict in self.conflicts or is_one_too_many:
            raise PayloadError("the kernel has already reported")
        self.conflicts.append(conflict)
        return conflict

    def reject(self, reason: str) -> None:
        """Remember why a message that names this kernel was refused."""
        if reason not in self.rejections and len(self.rejections) < MAX_REMEMBERED_REJECTIONS:
            self.rejections.append(reason)

    def close(self) -> None:
        """Expect this kernel no more."""
        self._server.forget(self)
        self._future.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class ResponseServer:
    """Listens for launchers and hands each expected kernel's connection information to who waits for it.

    Silent, slow, oversized and garbage connections cost one socket for at most ``connection_seconds``; when there
    are too many, the oldest is closed.

    Parameters
    ----------
    ip
        Address that launchers report to, IPv4 or IPv6, and that is bound.
    port, port_retries
        First port to try, and how many others to try when it is taken.
    any_address
        Bind all addresses of the ip's family, while ``ip`` stays the one that launchers report to.
    allow_v0
        Accept payload version 0, which is encrypted with the kernel's id: only for launchers of old.
    max_connections, connection_seconds
        How many connections may be open, and how long each has for its message.
    conflict_seconds
        For how long after a kernel's report others for it are looked at.
    on_conflict
        Called when a second report has come for a kernel that has one.
    """

    def __init__(
        self,
        *,
        ip: str,
        port: int = 8877,
        port_retries: int = 10,
        any_address: bool = False,
        allow_v0: bool = False,
        max_connections: int = MAX_CONNECTIONS,
        connection_seconds: float = CONNECTION_SECONDS,
        conflict_seconds: float = CONFLICT_SECONDS,
        on_conflict: Callable[[Conflict], None] = lambda _: None,
        log: logging.Logger | logging.LoggerAdapter[logging.Logger] | None = None,
    ) -> None:
        self.ip = ip.strip("[]")
        self.port = port
        self.connection_seconds = connection_seconds
        self._max_connections = max_connections
        self._port_retries = port_retries
        self._any_address = any_address
        self._allow_v0 = allow_v0
        self.conflict_seconds = conflict_seconds
        self._on_conflict = on_conflict
        self._log = log or logging.getLogger(__name__)
        self._warnings = _Budget(MAX_WARNINGS_PER_MINUTE, 60.0)
        self._expected: dict[str, Expectation] = {}
        self._connections: dict[_Connection, None] = {}
        self._queues: tuple[deque[tuple[Envelope, str]], ...] = (deque(), deque())
        self._server: asyncio.Server | None = None
        self._starting = asyncio.Lock()
        self._keys: KeyPair | None = None

    @property
    def address(self) -> str:
        """``ip:port`` for launchers; an IPv6 address is in brackets."""
        return f"[{self.ip}]:{self.port}" if ":" in self.ip else f"{self.ip}:{self.port}"

    @property
    def public_key(self) -> str:
        """Base64 of the public key that launchers encrypt with; there once the server has started."""
        if self._keys is None:
            raise RuntimeError("the response server has not been started")
        return self._keys.public_key

    async def start(self) -> None:
        """Make the keys, and listen on the first free port; the first launches call it, several at once.

        Raises
        ------
        OSError
            No port was free, or the address is not one of this host's.
        """
        async with self._starting:
            if self._server is None:
                await self._start()

    async def _start(self) -> None:
        keys = self._keys or await offload(KeyPair.generate)
        listening = await self._bind()
        self._server = await asyncio.get_running_loop().create_server(
            lambda: _Connection(self), sock=listening, backlog=_ACCEPTED_AT_ONCE
        )
        # asyncio takes as many connections in one turn as its backlog has room for: a flood would hold the loop. The
        # system's backlog may nevertheless be long, so that a launcher in the midst of a flood is not put off.
        listening.listen(_BACKLOG)
        self._keys = keys
        self._log.info("Kernels' launchers report to %s", self.address)

    async def _bind(self) -> socket.socket:
        """Return a socket bound to the first free port, and remember that port."""
        host = self.ip
        if self._any_address:
            host = "::" if ":" in self.ip else "0.0.0.0"
        for port in _candidates(self.port, self._port_retries):
            family, kind, protocol, _, address = (
                await offload(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
            )[0]
            bound = socket.socket(family, kind, protocol)
            bound.setblocking(False)
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if host == "::":
                bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            try:
                bound.bind(address)
            except OSError as error:
                bound.close()
                if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                    raise
                continue
            self.port = bound.getsockname()[1]
            return bound
        raise OSError(errno.EADDRINUSE, f"no free port for the response server near {self.port} on {host}")

    async def stop(self) -> None:
        """Close the listening socket, every connection and every expectation."""
        server, self._server = self._server, None
        if server is not None:
            server.close()
        for queue in self._queues:
            queue.clear()
        for connection in list(self._connections):
            connection.drop()
        for expectation in list(self._expected.values()):
            expectation.close()
        if server is not None:
            await server.wait_closed()

    def expect(
        self, kernel_id: str, *, secret: str | None = None, minimum_version: int = 1, demanded_by: str = ""
    ) -> Expectation:
        """Register a kernel before anything of it is launched; called by process proxies.

        Parameters
        ----------
        secret
            What the launcher gets as ``EG_LAUNCH_SECRET``; without one only version 1 can be used.
        minimum_version
            The least payload version that is accepted for this kernel.
        demanded_by
            What a refusal says of where that comes from.

        Raises
        ------
        PayloadError
            The kernel is expected already.
        """
        if kernel_id in self._expected:
            raise PayloadError(f"kernel {kernel_id} is being launched already")
        expectation = Expectation(
            self,
            kernel_id,
            secret=secret.encode() if secret else None,
            minimum_version=minimum_version,
            demanded_by=demanded_by,
        )
        self._expected[kernel_id] = expectation
        return expectation

    def forget(self, expectation: Expectation) -> None:
        """Drop an expectation; a message for its kernel is then refused."""
        if self._expected.get(expectation.kernel_id) is expectation:
            del self._expected[expectation.kernel_id]

    # -- called by connections

    def opened(self, connection: _Connection) -> None:
        """Count a new connection, and close another when there are too many."""
        if len(self._connections) >= self._max_connections:
            # The oldest, whether it has spoken or not: a launcher's message follows its connection at once, and one who
            # floods us can say a byte on each of his.
            next(iter(self._connections)).drop()
        self._connections[connection] = None

    def closed(self, connection: _Connection) -> None:
        """Forget a connection."""
        self._connections.pop(connection, None)

    def received(self, wire: bytes, peer: str) -> None:
        """Use one message, or refuse it and log why.

        Decrypting takes about a millisecond: it is done for one message in each turn of the loop. Those of version 2
        for kernels that have not reported yet go first: they say whose they are.
        """
        try:
            envelope = parse(wire)
            comes_first = envelope.version == 2 and not self._expectation(envelope.kernel_id).done
        except Exception as error:  # noqa: BLE001 -- of this message
            self._failed(peer, error)
            return
        queue = self._queues[0 if comes_first else 1]
        if len(queue) >= MAX_QUEUED_MESSAGES:
            self.refused(peer, "too many messages at once")
            return
        if not any(self._queues):
            asyncio.get_running_loop().call_soon(self._use_queued)
        queue.append((envelope, peer))

    def _use_queued(self) -> None:
        """Use one message of those that wait, and come again for the next one, whatever this one did."""
        queue = next((queue for queue in self._queues if queue), None)
        try:
            if queue is not None:
                self._use(*queue.popleft())
        finally:
            if any(self._queues):
                asyncio.get_running_loop().call_soon(self._use_queued)

    def _use(self, envelope: Envelope, peer: str) -> None:
        kernel_id = envelope.kernel_id
        try:
            report = self._open(envelope)
            kernel_id = report.kernel_id
            conflict = self._expectation(kernel_id).accept(report, peer)
            if conflict is not None:
                self._tell(conflict)
        except Exception as error:  # noqa: BLE001 -- of this message
            self._failed(peer, error, kernel_id)
        else:
            if conflict is None:
                self._log.debug("Kernel %s has reported from %s (version %s)", kernel_id, peer, report.version)

    def _tell(self, conflict: Conflict) -> None:
        self._log.warning(
            "Kernel %s has already reported from %s; another report for it from %s was refused. %s",
            conflict.kernel_id,
            conflict.accepted_from,
            conflict.refused_from,
            _VERDICTS[conflict.is_proven, conflict.is_forged],
        )
        self._on_conflict(conflict)

    def _failed(self, peer: str, error: Exception, kernel_id: str = "") -> None:
        """Refuse a message because of what it raised; of a mistake of our own the log has the place."""
        if isinstance(error, PayloadError):
            self.refused(peer, str(error), error.kernel_id or kernel_id)
            return
        self._log.debug("A response from %s could not be used", peer, exc_info=error)
        self.refused(peer, f"the gateway failed to use it: {type(error).__name__}", kernel_id)

    def refused(self, peer: str, reason: str, kernel_id: str = "") -> None:
        """Log, at a bounded rate, and remember why a message or a connection was not used."""
        reason = "".join(letter if letter.isprintable() else "?" for letter in reason[:MAX_REASON])
        expectation = self._expected.get(kernel_id)
        if expectation is not None:
            expectation.reject(f"{peer}: {reason}")
        if self._warnings.take():
            self._log.warning("Refused a response from %s for kernel %.40r: %s", peer, kernel_id, reason)

    def _expectation(self, kernel_id: str) -> Expectation:
        expectation = self._expected.get(kernel_id)
        if expectation is None:
            raise PayloadError("no kernel of this id is being launched")
        if not expectation.is_heard:
            raise PayloadError("the kernel has already reported")
        return expectation

    def _open(self, envelope: Envelope) -> Report:
        """Decrypt a message if it may be about a launch of now: refusing the others must cost nothing."""
        if self._keys is None:
            raise PayloadError("the response server has not been started")
        if envelope.version == 2:
            return self._keys.open(envelope, self._expectation(envelope.kernel_id).secret)
        if not any(expectation.is_heard for expectation in self._expected.values()):
            raise PayloadError("no kernel is being launched")
        return self._keys.open(envelope) if envelope.version == 1 else self._open_legacy(envelope)

    def _open_legacy(self, envelope: Envelope) -> Report:
        if not self._allow_v0:
            raise PayloadError("the message is not JSON, or of payload version 0, which is not allowed")
        for expectation in self._expected.values():
            if not expectation.done:
                try:
                    report = open_legacy(envelope, expectation.kernel_id)
                except PayloadError:
                    continue
                self._log.warning("Kernel %s uses the insecure payload version 0", report.kernel_id)
                return report
        raise PayloadError("the message matches no kernel that is being launched")


class _Connection(asyncio.Protocol):
    """One launcher's connection: its message ends with the end of what it sends."""

    def __init__(self, server: ResponseServer) -> None:
        self._server = server
        self._received = bytearray()
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._peer = "?"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._peer = _plain(str((transport.get_extra_info("peername") or ("?",))[0]))
        self._timer = asyncio.get_running_loop().call_later(self._server.connection_seconds, self._too_slow)
        self._server.opened(self)

    def data_received(self, data: bytes) -> None:
        self._received += data
        if len(self._received) > MAX_PAYLOAD_BYTES:
            self._server.refused(self._peer, f"more than {MAX_PAYLOAD_BYTES} bytes")
            self.drop()

    def eof_received(self) -> None:
        if self._received:  # else a port scan or a health probe
            self._server.received(bytes(self._received), self._peer)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._server.closed(self)

    def drop(self) -> None:
        """Reset the connection: if it is a launcher's, the launcher sees that it must try again."""
        self._server.closed(self)
        if self._transport is not None and not self._transport.is_closing():
            self._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self._transport.abort()

    def _too_slow(self) -> None:
        if self._received:
            self._server.refused(self._peer, f"not complete after {self._server.connection_seconds:g} seconds")
        self.drop()


class _Budget:
    """Allows so many events per period."""

    def __init__(self, events: int, seconds: float) -> None:
        self._events, self._seconds = events, seconds
        self._left, self._renewal = events, 0.0

    def take(self) -> bool:
        now = time.monotonic()
        if now >= self._renewal:
            self._left, self._renewal = self._events, now + self._seconds
        self._left -= 1
        return self._left >= 0


def _plain(address: str) -> str:
    """Return an IP address in the form that others write it in: without a zone, and IPv4 as such."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    return str(getattr(parsed, "ipv4_mapped", None) or parsed)


def _candidates(port: int, retries: int) -> list[int]:
    """Return the ports to try: five in sequence, then random ones nearby; 0 leaves the choice to the system."""
    if port == 0:
        return [0]
    count = retries + 1
    ports = [port + offset for offset in range(min(5, count))]
    ports += [port + random.randint(-2 * count, 2 * count) for _ in range(count - len(ports))]  # noqa: S311
    return [candidate for candidate in ports if 0 < candidate < 65536]

"""A TCP proxy in a thread of its own, between a client and a server, that can cut the line."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
import time

from typing_extensions import Self


class TcpProxy:
    """Forwards connections to ``host:port`` until they are cut; for ``with``."""

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        self._target = (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._wake, self._woken = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        self._partners: dict[socket.socket, socket.socket] = {}
        self._clients: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="tcp-proxy")
        self._tripwires: list[bytes] = []
        self._is_answer_lost = self._is_tripped = self._is_freezing = False
        self.refuse = False

    @property
    def port(self) -> int:
        """Where the proxy listens."""
        return int(self._listener.getsockname()[1])

    @property
    def connections(self) -> int:
        """How many connections it forwards now."""
        return len(self._partners) // 2

    def cut(self) -> None:
        """Reset every connection; set ``refuse`` before to refuse new ones, too."""
        with self._lock:
            for one in list(self._partners):
                # linger 0: a reset, not an orderly end
                with contextlib.suppress(OSError):
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                self._drop(one)

    def freeze(self) -> None:
        """Forward nothing any more, and close nothing: the systems at both ends acknowledge what they are sent."""
        with self._lock:
            for one in self._partners:
                self._selector.unregister(one)

    def freeze_at(self, text: bytes) -> None:
        """Freeze all connections, and refuse others, as soon as a client has sent this text; the server gets it not."""
        with self._lock:
            self._tripwires, self._is_answer_lost, self._is_freezing = [text], False, True

    def cut_at(self, *texts: bytes, is_answer_lost: bool = False) -> None:
        """Cut and refuse all connections as soon as a client has sent these texts, one after the other.

        The server gets the last one if ``is_answer_lost``, and else not.
        """
        with self._lock:
            self._tripwires, self._is_answer_lost, self._is_freezing = list(texts), is_answer_lost, False

    def __enter__(self) -> Self:
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._closing = True
        self._wake.send(b"x")
        self._thread.join()
        self.cut()
        for each in (self._listener, self._wake, self._woken, self._selector):
            each.close()

    def _run(self) -> None:
        while not self._closing:
            for key, _ in self._selector.select():
                with self._lock:
                    if key.fileobj is self._listener:
                        self._accept()
                    elif key.fileobj in self._partners and key.fd in self._selector.get_map():
                        self._forward(key.fileobj)  # type: ignore[arg-type]
                if self._is_tripped:
                    self._is_tripped = False
                    if self._is_freezing:
                        self.freeze()
                        continue
                    time.sleep(0.1)  # the server is to do what it was sent
                    self.cut()

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        if self.refuse:
            client.close()
            return
        try:
            server = socket.create_connection(self._target, timeout=5)
        except OSError:
            client.close()
            return
        for one, other in ((client, server), (server, client)):
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            one.settimeout(10)
            self._partners[one] = other
            if one is client:
                self._clients.add(one)
            self._selector.register(one, selectors.EVENT_READ)

    def _forward(self, source: socket.socket) -> None:
        try:
            data = source.recv(1 << 16)
            if source in self._clients and self._trips(data) and not self._is_answer_lost:
                return
            if data:
                self._partners[source].sendall(data)
                return
        except OSError:
            pass
        self._drop(source)

    def _trips(self, data: bytes) -> bool:
        """Return whether the connections are to be cut because of what a client has sent."""
        if not self._tripwires:
            return False
        while self._tripwires and self._tripwires[0] in data:
            data = data.partition(self._tripwires.pop(0))[2]
        self._is_tripped = self.refuse = not self._tripwires
        return self._is_tripped

    def _drop(self, one: socket.socket) -> None:
        other = self._partners.pop(one, None)
        for each in (one, other):
            if each is not None:
                self._partners.pop(each, None)
                self._clients.discard(each)
                with contextlib.suppress(KeyError, ValueError):
                    self._selector.unregister(each)
                each.close()

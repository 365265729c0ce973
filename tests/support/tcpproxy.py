"""A TCP proxy in a thread of its own, between a client and a server, that can cut the line."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading

from typing_extensions import Self


class TcpProxy:
    """Forwards connections to ``host:port`` until they are cut; for ``with``."""

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        self._target = (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._wake, self._woken = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        self._partners: dict[socket.socket, socket.socket] = {}
        self._lock = threading.Lock()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="tcp-proxy")
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
            self._selector.register(one, selectors.EVENT_READ)

    def _forward(self, source: socket.socket) -> None:
        try:
            data = source.recv(1 << 16)
            if data:
                self._partners[source].sendall(data)
                return
        except OSError:
            pass
        self._drop(source)

    def _drop(self, one: socket.socket) -> None:
        other = self._partners.pop(one, None)
        for each in (one, other):
            if each is not None:
                self._partners.pop(each, None)
                with contextlib.suppress(KeyError, ValueError):
                    self._selector.unregister(each)
                each.close()

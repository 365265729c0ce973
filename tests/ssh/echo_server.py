"""A kernel's stand-in on a remote host: six ports that send back what they get, and a log of connections."""

from __future__ import annotations

import socket
import sys
import threading


def echo(connection: socket.socket) -> None:
    """Send everything back, then end too."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with connection:
        while data := connection.recv(1 << 17):
            connection.sendall(data)


def serve(listener: socket.socket) -> None:
    """Answer every connection in a thread."""
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=echo, args=(connection,), daemon=True).start()


for port in map(int, sys.argv[1:]):
    threading.Thread(target=serve, args=(socket.create_server(("0.0.0.0", port), backlog=1000),)).start()
sys.stdout.write("ready\n")
sys.stdout.flush()
threading.Event().wait()

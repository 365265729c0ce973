"""What the system knows about a TCP connection's peer: the client, or a proxy in front of it."""

from __future__ import annotations

import socket
import struct
import sys
from typing import NamedTuple

_KEEPALIVE = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 20, "TCP_KEEPCNT": 4}  # macOS has no name for the first
_SIOCOUTQNSD = 0x894B  # of linux/sockios.h: bytes that were not sent yet


class TcpState(NamedTuple):
    """How far the peer's TCP layer follows.

    Parameters
    ----------
    unacknowledged
        Bytes that were handed to the system and the peer has not acknowledged.
    is_retransmitting
        Whether the system sends again what was not acknowledged: the line is dead, or bad. A peer that does not read
        acknowledges still: it is not retransmitted to.
    is_fresh
        Whether all of it was sent so shortly ago (0.2 s and more) that an acknowledgement need not have come.
    silence
        Seconds since the last acknowledgement of any kind.
    """

    unacknowledged: int
    is_retransmitting: bool
    is_fresh: bool
    silence: float


def read_tcp_state(sock: socket.socket) -> TcpState | None:
    """Ask the system; None where it does not tell (other systems than Linux, other sockets than TCP)."""
    if sys.platform != "linux":
        return None
    import fcntl
    import termios

    try:
        (waiting,) = struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, b"\0\0\0\0"))
        (unsent,) = struct.unpack("i", fcntl.ioctl(sock.fileno(), _SIOCOUTQNSD, b"\0\0\0\0"))
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 60)
    except (OSError, ValueError):
        return None
    # struct tcp_info of linux/tcp.h: retransmits is its third byte, last_ack_recv (milliseconds) its 13th number.
    retransmits = info[2]
    (silence,) = struct.unpack_from("I", info, 56)
    return TcpState(waiting, waiting > 0 and retransmits > 0, unsent == 0 and retransmits == 0, silence / 1000)


def keep_alive(sock: socket.socket) -> None:
    """Let the system find out that an idle connection's peer is gone: after about two minutes."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE.items():
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

r"""A kernel without an interpreter: real ZMQ sockets, signed messages, a few commands in place of code.

What ``execute_request`` carries as code is a command::

    print <n> [<m> …]   n ``stream`` messages, "line <i>\n"; half a second later more of them, up to m
    later <n>           the same after a short while
    display <n>         one ``display_data`` message of n bytes
    reply <n>           an ``execute_reply`` of n bytes
    reply <n> later     the same when ``may_go_on`` is set
    write <n>           one ``stream`` message of n bytes
    binary              a ``display_data`` message with two buffers
    error               an ``error`` message and reply
    input               asks on stdin and prints the answer
    input later         the same when ``may_go_on`` is set; until then it sees to its sockets and takes what comes
    sleep <seconds>     stays busy
    anything else       an ``execute_result`` with the text itself
"""

from __future__ import annotations

import hashlib
import hmac
import json
import threading
import time
import uuid
from collections.abc import Mapping
from typing import Any

import zmq

from enterprise_gateway.core.connection import ConnectionInfo

DELIMITER = b"<IDS|MSG>"
BUFFERS = [b"\x00\x01\xff" * 5, bytes(range(256))]


class TinyKernel:
    """Serves from a thread of its own between :meth:`start` and :meth:`stop`.

    Parameters
    ----------
    key
        Signs messages; random unless given.
    curve
        Whether to encrypt the transport.
    says_idle
        Whether executions end with the status ``idle``.
    hands_over
        Whether a new connection of an identity takes the place of an earlier one.
    ports
        Where to listen, by the names of a connection file; random ports unless given.
    """

    def __init__(
        self,
        key: bytes | None = None,
        *,
        curve: bool = False,
        says_idle: bool = True,
        hands_over: bool = False,
        ports: Mapping[str, int] | None = None,
    ) -> None:
        self.key = key or uuid.uuid4().hex.encode()
        self.session = uuid.uuid4().hex
        self.received: list[dict[str, Any]] = []
        self.looks = 0  # how often it has seen to its sockets during a cell
        self._backlog: list[list[bytes]] = []
        self.may_go_on = threading.Event()
        self._says_idle = says_idle
        self._hands_over = hands_over
        self._curve = zmq.curve_keypair() if curve else None
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        kinds = {"shell": zmq.ROUTER, "control": zmq.ROUTER, "stdin": zmq.ROUTER, "iopub": zmq.PUB, "hb": zmq.REP}
        self._sockets = {name: self._bind(kind, (ports or {}).get(f"{name}_port")) for name, kind in kinds.items()}
        self._ports = {name: port for name, (_, port) in self._sockets.items()}
        self._wake_address = f"inproc://{uuid.uuid4().hex}"
        self._wake_end = self._context.socket(zmq.PAIR)
        self._wake_end.bind(self._wake_address)
        self._stopped = threading.Event()
        self._orders: list[tuple[str, list[bytes]]] = []
        self._thread = threading.Thread(target=self._serve, name="tiny-kernel", daemon=True)

    @property
    def info(self) -> ConnectionInfo:
        """How to connect."""
        public, secret = self._curve or (None, None)
        return ConnectionInfo(
            ip="127.0.0.1",
            **{f"{name}_port": port for name, port in self._ports.items()},
            key=self.key,
            curve_publickey=public,
            curve_secretkey=secret,
        )

    def start(self) -> None:
        """Begin to serve."""
        self._thread.start()

    def stop(self) -> None:
        """End at once, as if killed; also before it has begun."""
        if self._thread.ident is None:
            self.start()  # the thread closes the sockets
        self._stopped.set()
        self.may_go_on.set()
        self._wake_end.send(b"")
        self._thread.join()
        self._wake_end.close()
        self._context.term()

    def publish_raw(self, frames: list[bytes]) -> None:
        """Send these very frames on iopub, from any thread."""
        self._orders.append(("iopub", frames))
        self._wake_end.send(b"order")

    def publish(self, msg_type: str, content: dict[str, Any], parent: dict[str, Any] | None = None) -> None:
        """Send a proper message on iopub, from any thread."""
        self.publish_raw([b"topic", *self._message(msg_type, content, parent or {})])

    def _bind(self, kind: int, port: int | None) -> tuple[zmq.Socket[bytes], int]:
        socket = self._context.socket(kind)
        socket.linger = 0
        socket.set_hwm(0)
        if kind == zmq.ROUTER:
            socket.router_handover = self._hands_over
        if self._curve:
            socket.curve_server = True
            socket.curve_publickey, socket.curve_secretkey = self._curve
        if port is None:
            return socket, socket.bind_to_random_port("tcp://127.0.0.1")
        socket.bind(f"tcp://127.0.0.1:{port}")
        return socket, port

    def _serve(self) -> None:
        wake = self._context.socket(zmq.PAIR)
        wake.connect(self._wake_address)
        poller = zmq.Poller()
        poller.register(wake, zmq.POLLIN)
        for name in ("shell", "control", "hb"):
            poller.register(self._sockets[name][0], zmq.POLLIN)
        self._publish("status", {"execution_state": "starting"}, {})
        serving = True
        while serving:
            ready = dict(poller.poll())
            if wake in ready:
                serving = wake.recv() != b""
                while self._orders:
                    channel, frames = self._orders.pop(0)
                    is_small = sum(map(len, frames)) < 1 << 20  # copying more would keep the interpreter lock
                    self._sockets[channel][0].send_multipart(frames, copy=is_small)
            if self._sockets["hb"][0] in ready:
                self._sockets["hb"][0].send(self._sockets["hb"][0].recv())
            for channel in ("control", "shell"):
                if serving and self._sockets[channel][0] in ready:
                    self._handle(channel, self._sockets[channel][0].recv_multipart())
                while self._backlog:
                    self._handle("shell", self._backlog.pop(0))
        wake.close()
        for socket, _ in self._sockets.values():
            socket.close()

    def _handle(self, channel: str, frames: list[bytes]) -> None:
        start = frames.index(DELIMITER)
        identities, signature, parts = frames[:start], frames[start + 1], frames[start + 2 :]
        assert signature == self._sign(parts[:4]), "the gateway signs what it sends"
        header, content = json.loads(parts[0]), json.loads(parts[3])
        self.received.append({"channel": channel, "header": header, "content": content, "buffers": parts[4:]})
        self._publish("status", {"execution_state": "busy"}, header)
        kind = header["msg_type"].removesuffix("_request")
        reply: dict[str, Any] | None = {"status": "ok"}
        if kind == "execute":
            reply = self._execute(identities, header, content)
        elif kind == "kernel_info":
            reply = {
                "status": "ok",
                "protocol_version": "5.4",
                "implementation": "tiny",
                "banner": "",
                "help_links": [],
            }
        elif kind == "debug":
            reply = {"success": True, "command": content.get("command"), "body": content.get("arguments")}
        elif kind == "comm_msg":
            self._publish("comm_msg", content, header, parts[4:])
            reply = None
        if reply is not None:
            message = self._message(f"{kind}_reply", reply, header)
            self._sockets[channel][0].send_multipart([*identities, *message])
        if self._says_idle or kind != "execute":
            self._publish("status", {"execution_state": "idle"}, header)

    def _execute(self, identities: list[bytes], header: dict[str, Any], content: dict[str, Any]) -> dict[str, Any]:
        code = content["code"]
        command, _, argument = code.partition(" ")
        self._publish("execute_input", {"code": code, "execution_count": 1}, header)
        if command in {"print", "later"}:
            self._print(list(map(int, argument.split())), header, is_later=command == "later")
        elif command == "write":
            self._publish("stream", {"name": "stdout", "text": "x" * int(argument)}, header)
        elif command == "display":
            data = {"data": {"text/plain": "x" * int(argument)}, "metadata": {}, "transient": {}}
            self._publish("display_data", data, header)
        elif command == "reply":
            size, _, later = argument.partition(" ")
            if later:
                self.may_go_on.wait()
            return {"status": "ok", "execution_count": 1, "payload": [], "user_expressions": {"x": "x" * int(size)}}
        elif command == "binary":
            self._publish("display_data", {"data": {}, "metadata": {}, "transient": {}}, header, BUFFERS)
        elif command == "error":
            failure = {"ename": "ValueError", "evalue": "secret", "traceback": ["secret"]}
            self._publish("error", failure, header)
            return {"status": "error", "execution_count": 1, **failure}
        elif command == "input":
            self._ask(identities, header, is_later=bool(argument))
        elif command == "sleep":
            self._stopped.wait(float(argument))
        else:
            data = {"data": {"text/plain": code}, "metadata": {}, "execution_count": 1}
            self._publish("execute_result", data, header)
        return {"status": "ok", "execution_count": 1, "payload": [], "user_expressions": {}}

    def _print(self, totals: list[int], header: dict[str, Any], is_later: bool) -> None:
        time.sleep(0.3 if is_later else 0)
        printed = 0
        for total in totals:
            time.sleep(0.5 if printed else 0)
            for number in range(printed, total):
                self._publish("stream", {"name": "stdout", "text": f"line {number}\n"}, header)
            printed = total

    def _ask(self, identities: list[bytes], header: dict[str, Any], is_later: bool) -> None:
        shell, stdin = self._sockets["shell"][0], self._sockets["stdin"][0]
        while is_later and not self.may_go_on.wait(0.01):
            while shell.poll(0):
                self._backlog.append(shell.recv_multipart())
            stdin.poll(0)
            self.looks += 1
        stdin.send_multipart([*identities, *self._message("input_request", {"prompt": "?"}, header)])
        if stdin.poll(3000):
            reply = stdin.recv_multipart()
            answer = json.loads(reply[reply.index(DELIMITER) + 5])["value"]
            self._publish("stream", {"name": "stdout", "text": answer}, header)

    def _publish(
        self, msg_type: str, content: dict[str, Any], parent: dict[str, Any], buffers: list[bytes] | None = None
    ) -> None:
        message = self._message(msg_type, content, parent)
        self._sockets["iopub"][0].send_multipart([msg_type.encode(), *message, *(buffers or [])])

    def _message(self, msg_type: str, content: dict[str, Any], parent: dict[str, Any]) -> list[bytes]:
        header = {
            "msg_id": uuid.uuid4().hex,
            "msg_type": msg_type,
            "session": self.session,
            "username": "kernel",
            "date": "2026-01-01T00:00:00.000000Z",
            "version": "5.4",
        }
        parts = [json.dumps(part).encode() for part in (header, parent, {}, content)]
        return [DELIMITER, self._sign(parts), *parts]

    def _sign(self, parts: list[bytes]) -> bytes:
        return hmac.new(self.key, b"".join(parts), hashlib.sha256).hexdigest().encode()

"""Many tiny Jupyter kernels in one process, so that a benchmark measures the gateway and not its kernels.

A kernelspec of the benchmark starts a shell stub that writes one line to this process's pipe and becomes ``sleep``:
that child is what the gateway started, watches and kills; the sockets it believes to be the child's are served here.
The Jupyter protocol is spoken over plain pyzmq with JSON written by hand. Code ``stream N`` emits N stream messages;
any other code does nothing. A kernel ends with its stub, and its stub with it.

``python tinykernel.py PIPE`` serves until its standard input ends. Each line of standard input is a command and is
answered by one line: ``count`` by the number of kernels, ``reset`` ends all of them.
"""

from __future__ import annotations

import base64
import contextlib
import hmac
import json
import os
import secrets
import selectors
import signal
import socket
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import zmq

DELIMITER = b"<IDS|MSG>"
EMPTY = b"{}"
KERNEL_INFO = json.dumps(
    {
        "status": "ok",
        "protocol_version": "5.3",
        "implementation": "tiny",
        "implementation_version": "1",
        "language_info": {"name": "tiny", "version": "1", "mimetype": "text/plain", "file_extension": ".txt"},
        "banner": "",
        "help_links": [],
    }
).encode()
OK = b'{"status": "ok"}'
EXECUTE_OK = b'{"status": "ok", "execution_count": 1, "user_expressions": {}, "payload": []}'
BUSY, IDLE = b'{"execution_state": "busy"}', b'{"execution_state": "idle"}'
LOCAL_STUB = """#!/bin/sh
trap '' INT
echo "L $$ $1" > {pipe}
exec /bin/sleep 100000
"""
REMOTE_STUB = """#!/bin/sh
trap '' INT
echo "R $$ $2 $4 $6 ${{EG_LAUNCH_SECRET:--}}" > {pipe}
exec /bin/sleep 100000
"""


def write_stubs(directory: Path, pipe: Path) -> tuple[Path, Path]:
    """Write the two shell stubs that announce a kernel on ``pipe``: for local and for remote kernelspecs."""
    local, remote = directory / f"{pipe.name}-local.sh", directory / f"{pipe.name}-remote.sh"
    local.write_text(LOCAL_STUB.format(pipe=pipe))
    remote.write_text(REMOTE_STUB.format(pipe=pipe))
    return local, remote


def notifier(sock: zmq.Socket[bytes]) -> int:
    """Return the descriptor that signals events of a ZMQ socket."""
    return cast(int, sock.getsockopt(zmq.FD))


def bind_patiently(sock: zmq.Socket[bytes], address: str) -> None:
    """Bind, with retries for half a second, because on a busy machine another process may briefly hold the port."""
    for attempt in range(25):
        try:
            sock.bind(address)
        except zmq.ZMQError as error:
            if error.errno != zmq.EADDRINUSE or attempt == 24:
                raise
            time.sleep(0.02)
        else:
            if attempt:
                print(f"tinykernel: {address} was free at attempt {attempt + 1}", file=sys.stderr, flush=True)
            return


class TinyKernel:
    """The five sockets of one kernel, and the comm port of a remote one."""

    def __init__(self, farm: Farm, pid: int, info: dict[str, Any]) -> None:
        self.farm = farm
        self.pid = pid
        self.key = info["key"].encode()
        self.session = uuid.uuid4().hex.encode()
        self.serial = 0
        self.ports: dict[str, int] = {}
        self.sockets: list[zmq.Socket[bytes]] = []
        self.comm: CommListener | None = None
        self.pidfd = os.pidfd_open(pid)
        farm.selector.register(self.pidfd, selectors.EVENT_READ, self.close)
        try:
            self._open(info)
        except zmq.ZMQError:
            self.close()
            raise

    def _open(self, info: dict[str, Any]) -> None:
        self.iopub = self._bind(zmq.PUB, info, "iopub_port")
        for name in ("shell_port", "control_port"):
            self._serve(self._bind(zmq.ROUTER, info, name), self._on_request)
        self._bind(zmq.ROUTER, info, "stdin_port")
        self._serve(self._bind(zmq.ROUTER, info, "hb_port"), self._on_heartbeat)

    def _bind(self, kind: int, info: dict[str, Any], name: str) -> zmq.Socket[bytes]:
        sock = self.farm.context.socket(kind)
        self.sockets.append(sock)
        sock.linger = 0
        sock.sndhwm = sock.rcvhwm = 0
        bind_patiently(sock, f"tcp://127.0.0.1:{info.get(name) or '*'}")
        endpoint = cast(bytes, sock.getsockopt(zmq.LAST_ENDPOINT)).rstrip(b"\0")
        self.ports[name] = int(endpoint.rsplit(b":", 1)[1])
        return sock

    def _serve(self, sock: zmq.Socket[bytes], handle: Callable[[zmq.Socket[bytes], list[bytes]], None]) -> None:
        def drain() -> None:
            try:
                while not sock.closed:
                    handle(sock, sock.recv_multipart(zmq.NOBLOCK))
            except zmq.Again:
                pass

        self.farm.selector.register(notifier(sock), selectors.EVENT_READ, drain)

    def _on_heartbeat(self, sock: zmq.Socket[bytes], parts: list[bytes]) -> None:
        sock.send_multipart(parts)

    def _on_request(self, sock: zmq.Socket[bytes], parts: list[bytes]) -> None:
        start = parts.index(DELIMITER)
        signature, header, _, _, content = parts[start + 1 : start + 6]
        if signature != self._sign(*parts[start + 2 : start + 6]):
            print("tinykernel: a message with a wrong signature was dropped", file=sys.stderr, flush=True)
            return
        kind = json.loads(header)["msg_type"]
        if not kind.endswith("_request"):
            return
        self._publish(b"status", header, BUSY)
        reply = OK
        if kind == "execute_request":
            code = json.loads(content)["code"]
            self._publish(b"execute_input", header, b'{"code": %s, "execution_count": 1}' % json.dumps(code).encode())
            if code.startswith("stream "):
                self._stream(int(code[7:]), header)
            reply = EXECUTE_OK
        elif kind == "kernel_info_request":
            reply = KERNEL_INFO
        reply_kind = kind.replace("_request", "_reply").encode()
        sock.send_multipart([*parts[: start + 1], *self._message(reply_kind, header, reply)])
        self._publish(b"status", header, IDLE)
        if kind == "shutdown_request":
            os.kill(self.pid, signal.SIGKILL)

    def _stream(self, count: int, parent: bytes) -> None:
        for number in range(count):
            self._publish(b"stream", parent, b'{"name": "stdout", "text": "this is line %05d~\\n"}' % number)

    def _publish(self, kind: bytes, parent: bytes, content: bytes) -> None:
        topic = b"kernel.%s.%s" % (self.session, kind)
        self.iopub.send_multipart([topic, DELIMITER, *self._message(kind, parent, content)])

    def _message(self, kind: bytes, parent: bytes, content: bytes) -> list[bytes]:
        self.serial += 1
        header = (
            b'{"msg_id": "%s_%d", "msg_type": "%s", "username": "", "session": "%s", "date": "%s", "version": "5.3"}'
            % (self.session, self.serial, kind, self.session, self.farm.date())
        )
        return [self._sign(header, parent, EMPTY, content), header, parent, EMPTY, content]

    def _sign(self, *parts: bytes) -> bytes:
        return hmac.digest(self.key, b"".join(parts), "sha256").hex().encode()

    def close(self) -> None:
        """End the kernel and its stub."""
        if self.pidfd < 0:
            return
        selector = self.farm.selector
        selector.unregister(self.pidfd)
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        os.close(self.pidfd)
        self.pidfd = -1
        for sock in self.sockets:
            with contextlib.suppress(KeyError):
                selector.unregister(notifier(sock))
            sock.close()
        if self.comm is not None:
            self.comm.close()
        self.farm.kernels.discard(self)


class CommListener:
    """The port on which a launcher receives signals: one JSON object per connection, or the authenticated version 2."""

    def __init__(self, kernel: TinyKernel, secret: bytes) -> None:
        self.kernel = kernel
        self.key = hmac.digest(secret, b"EG-comm-v2", "sha256") if secret else b""
        self.connections: set[CommConnection] = set()
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.socket.setblocking(False)
        self.port: int = self.socket.getsockname()[1]
        kernel.farm.selector.register(self.socket, selectors.EVENT_READ, self._accept)

    def _accept(self) -> None:
        connection, _ = self.socket.accept()
        self.connections.add(CommConnection(self, connection))

    def obey(self, command: dict[str, Any]) -> None:
        if command.get("signum") in (signal.SIGKILL, signal.SIGTERM):
            self.kernel.close()

    def close(self) -> None:
        self.kernel.farm.selector.unregister(self.socket)
        self.socket.close()
        for connection in list(self.connections):
            connection.close()


class CommConnection:
    """One client of a comm port."""

    def __init__(self, listener: CommListener, connection: socket.socket) -> None:
        self.listener = listener
        self.socket = connection
        self.data = b""
        self.challenge = secrets.token_hex(16)
        connection.setblocking(False)
        if listener.key:
            connection.send(b'{"version":2,"challenge":"%s"}\n' % self.challenge.encode())
        listener.kernel.farm.selector.register(connection, selectors.EVENT_READ, self._read)

    def _read(self) -> None:
        try:
            data = self.socket.recv(65536)
        except ConnectionError:
            data = b""
        self.data += data
        if self.listener.key:
            self._obey_lines()
        if not data:
            self.close()
            if not self.listener.key and self.data:
                self.listener.obey(json.loads(self.data))

    def _obey_lines(self) -> None:
        *lines, self.data = self.data.split(b"\n")
        for line in lines:
            call = json.loads(line)
            signed = f"{self.challenge}.{call['seq']}.{call['command']}".encode()
            if not hmac.compare_digest(hmac.digest(self.listener.key, signed, "sha256").hex(), call["mac"]):
                print("tinykernel: a command with a wrong mac was dropped", file=sys.stderr, flush=True)
                continue
            self.socket.send(b'{"seq":%d,"ok":true}\n' % call["seq"])
            self.listener.obey(json.loads(call["command"]))

    def close(self) -> None:
        if self in self.listener.connections:
            self.listener.connections.discard(self)
            self.listener.kernel.farm.selector.unregister(self.socket)
            self.socket.close()


class Farm:
    """Reads announcements of stubs and serves their kernels."""

    def __init__(self, pipe: str) -> None:
        self.context = zmq.Context()
        self.context.max_sockets = 20000
        self.selector = selectors.DefaultSelector()
        self.kernels: set[TinyKernel] = set()
        self._pipe = os.open(pipe, os.O_RDWR | os.O_NONBLOCK)
        self._pipe_rest = b""
        self._date = (0, b"")
        self._keys: dict[str, Any] = {}
        self.selector.register(self._pipe, selectors.EVENT_READ, self._on_announcements)
        self.selector.register(sys.stdin.fileno(), selectors.EVENT_READ, self._on_command)

    def date(self) -> bytes:
        """Return the current time as messages carry it, computed once a second."""
        now = int(time.time())
        if now != self._date[0]:
            self._date = (now, time.strftime("%Y-%m-%dT%H:%M:%S.000000Z", time.gmtime(now)).encode())
        return self._date[1]

    def run(self) -> None:
        """Serve until standard input ends."""
        while True:
            for key, _ in self.selector.select():
                if key.fd in self.selector.get_map():
                    key.data()

    def _on_command(self) -> None:
        command = os.read(sys.stdin.fileno(), 1000).strip()
        if not command or command == b"reset":
            for kernel in list(self.kernels):
                kernel.close()
        if not command:
            sys.exit(0)
        print(len(self.kernels), flush=True)

    def _on_announcements(self) -> None:
        *lines, self._pipe_rest = (self._pipe_rest + os.read(self._pipe, 1 << 20)).split(b"\n")
        for line in lines:
            kind, pid, *words = line.decode().split(" ")
            try:
                if kind == "L":
                    self.kernels.add(TinyKernel(self, int(pid), json.loads(Path(words[0]).read_text())))
                else:
                    self._start_remote(int(pid), *words)
            except (OSError, ValueError, zmq.ZMQError) as error:
                print(f"tinykernel: kernel of process {pid} failed: {error!r}", file=sys.stderr, flush=True)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)

    def _start_remote(self, pid: int, kernel_id: str, address: str, public_key: str, secret: str) -> None:
        key = str(uuid.uuid4())
        kernel = TinyKernel(self, pid, {"key": key})
        self.kernels.add(kernel)
        launch_secret = b"" if secret == "-" else secret.encode()
        kernel.comm = CommListener(kernel, launch_secret)
        info = {
            **kernel.ports,
            "ip": "0.0.0.0",
            "key": key,
            "transport": "tcp",
            "signature_scheme": "hmac-sha256",
            "kernel_name": "",
            "kernel_id": kernel_id,
            "comm_port": kernel.comm.port,
            "pid": pid,
            "pgid": os.getpgid(pid),
        }
        if launch_secret:
            info["comm_version"] = 2
        payload = self._payload(kernel_id, public_key, launch_secret, json.dumps(info).encode())
        host, port = address.split(":")
        with socket.create_connection((host, int(port)), timeout=5) as connection:
            connection.sendall(payload)

    def _payload(self, kernel_id: str, public_key: str, secret: bytes, info: bytes) -> bytes:
        from Cryptodome.Cipher import AES, PKCS1_OAEP, PKCS1_v1_5
        from Cryptodome.Hash import SHA256
        from Cryptodome.PublicKey import RSA
        from Cryptodome.Util.Padding import pad

        def text(data: bytes) -> str:
            return base64.b64encode(data).decode()

        if public_key not in self._keys:
            self._keys[public_key] = RSA.import_key(base64.b64decode(public_key))
        rsa = self._keys[public_key]
        if not secret:
            aes_key = secrets.token_bytes(16)
            wire = {
                "version": 1,
                "key": text(PKCS1_v1_5.new(rsa).encrypt(aes_key)),
                "conn_info": text(AES.new(aes_key, AES.MODE_ECB).encrypt(pad(info, 16))),
            }
        else:
            content_key, nonce = secrets.token_bytes(32), secrets.token_bytes(12)
            key = text(PKCS1_OAEP.new(rsa, hashAlgo=SHA256).encrypt(content_key))
            aead = AES.new(hmac.digest(secret, b"EG-payload-v2" + content_key, "sha256"), AES.MODE_GCM, nonce=nonce)
            aead.update(b"EG-payload-v2\0" + kernel_id.encode() + b"\0" + key.encode())
            cipher, tag = aead.encrypt_and_digest(info)
            wire = {
                "version": 2,
                "kernel_id": kernel_id,
                "key": key,
                "nonce": text(nonce),
                "conn_info": text(cipher + tag),
            }
        return base64.b64encode(json.dumps(wire).encode())


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Farm(sys.argv[1]).run()

"""Launchers that misbehave: each reports to the gateway in a way of its own; run as a program by kernelspecs.

``bad_launcher.py MODE --kernel-id ID --public-key KEY --response-address IP:PORT [--connection-file FILE]``
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from typing import Any

from cryptography.hazmat.primitives import padding, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import ECB


def payload(public_key: Any, info: dict[str, Any]) -> bytes:
    """Return a version 1 message."""
    key = os.urandom(16)
    padder = padding.PKCS7(128).padder()
    encryptor = Cipher(AES(key), ECB()).encryptor()
    padded = padder.update(json.dumps(info).encode()) + padder.finalize()
    message = {
        "version": 1,
        "key": base64.b64encode(public_key.encrypt(key, PKCS1v15())).decode(),
        "conn_info": base64.b64encode(encryptor.update(padded) + encryptor.finalize()).decode(),
    }
    return base64.b64encode(json.dumps(message).encode())


def send(address: str, wire: bytes, *, piece: int = 1 << 16, pause: float = 0) -> None:
    """Send one message, if need be in pieces."""
    host, port = address.rsplit(":", 1)
    with socket.create_connection((host, int(port))) as connection:
        for start in range(0, len(wire), piece):
            connection.sendall(wire[start : start + piece])
            time.sleep(pause)


def start_kernel() -> tuple[dict[str, Any], subprocess.Popen[bytes]]:
    """Start a real kernel beside this launcher."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(5)]
    names = ("shell_port", "iopub_port", "stdin_port", "control_port", "hb_port")
    info: dict[str, Any] = {name: s.getsockname()[1] for name, s in zip(names, sockets, strict=True)}
    for each in sockets:
        each.close()
    info.update(ip="0.0.0.0", key=str(uuid.uuid4()), transport="tcp", signature_scheme="hmac-sha256")
    file = os.path.join(tempfile.gettempdir(), f"bad-launcher-{uuid.uuid4()}.json")
    with open(file, "w") as stream:
        json.dump(info, stream)
    kernel = subprocess.Popen([sys.executable, "-m", "ipykernel_launcher", "-f", file])
    return {**info, "pid": kernel.pid, "pgid": os.getpgrp()}, kernel


def listen(listener: socket.socket, kernel: subprocess.Popen[bytes]) -> None:
    """Serve a communication port of version 1 until told to stop, also when the kernel has long ended."""
    while True:
        with listener.accept()[0] as connection:
            text = connection.makefile().read()
        command = json.loads(text) if text else {}
        if command.get("shutdown"):
            return
        if kernel.poll() is None:
            kernel.send_signal(command.get("signum", 0))


def do_not_report(mode: str) -> None:
    """End without a response, at once or after a long time."""
    if mode == "silent":
        time.sleep(60)
        sys.exit()
    print("Traceback (most recent call last):\nModuleNotFoundError: No module named 'ipykernel'", file=sys.stderr)
    sys.exit(3)


def last_messages(mode: str, right: bytes, other: bytes) -> list[bytes]:
    """Return what a mode sends in the end: the right report, or with it another one of the same kernel."""
    messages = {
        "pieces": [],
        "twice": [right, right],
        "contradicts-itself": [other, right],
        "is-contradicted": [right, other],
    }
    return messages.get(mode, [right])


def main() -> None:
    """Do what the mode says."""
    parser = argparse.ArgumentParser()
    parser.add_argument("mode")
    parser.add_argument("--kernel-id", "--RemoteProcessProxy.kernel-id")
    parser.add_argument("--public-key", "--RemoteProcessProxy.public-key")
    parser.add_argument("--response-address", "--RemoteProcessProxy.response-address")
    options, _ = parser.parse_known_args()
    if options.mode in ("crash", "silent"):
        do_not_report(options.mode)
    public_key = serialization.load_der_public_key(base64.b64decode(options.public_key))
    info, kernel = start_kernel()
    info["kernel_id"] = options.kernel_id
    if options.mode == "outliving":
        listener = socket.create_server(("127.0.0.1", 0))
        send(options.response_address, payload(public_key, {**info, "comm_port": listener.getsockname()[1]}))
        listen(listener, kernel)
        return
    wire = payload(public_key, info)
    if options.mode == "late":
        time.sleep(1.5)
    elif options.mode == "pieces":
        send(options.response_address, wire, piece=100, pause=0.01)
    elif options.mode == "wrong-key":
        send(options.response_address, payload(rsa.generate_private_key(65537, 2048).public_key(), info))
    elif options.mode == "wrong-id":
        send(options.response_address, payload(public_key, {**info, "kernel_id": str(uuid.uuid4())}))
    elif options.mode == "garbage":
        send(options.response_address, b"\0\xff" * 100)
        send(options.response_address, b"")
    elif options.mode == "bad-ports":
        send(options.response_address, payload(public_key, {**info, "shell_port": 99999}))
        kernel.terminate()
        time.sleep(60)
    other = payload(public_key, {**info, "key": str(uuid.uuid4())})
    for each in last_messages(options.mode, wire, other):
        send(options.response_address, each)
    if options.mode == "dies":
        time.sleep(0.5)
        kernel.kill()
    sys.exit(kernel.wait())


if __name__ == "__main__":
    main()

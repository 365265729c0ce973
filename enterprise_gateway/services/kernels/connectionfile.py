"""Writes connection files so that nobody can have put something in their place."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from jupyter_client.connect import write_connection_file

from ...core.errors import KernelLaunchError

OF_CONNECTION_FILES = ("transport", "ip", "kernel_name", "curve_publickey", "curve_secretkey")  # besides ports and key


def write_into_place(path: str, content: Mapping[str, Any]) -> Mapping[str, Any]:
    """Write a connection file beside its place and move it there; return what was written, with ports. Blocks.

    Raises
    ------
    KernelLaunchError
        The place is taken by what cannot be removed, or nothing can be written there.
    """
    draft = f"{path}.{secrets.token_hex(8)}"
    try:
        _, info = write_connection_file(draft, **content)
        os.replace(draft, path)
    except OSError as error:
        with suppress(OSError):
            os.unlink(draft)
        raise KernelLaunchError(f"The connection file {path} cannot be written: {error.strerror}.") from error
    return info

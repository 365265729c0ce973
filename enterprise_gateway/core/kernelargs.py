"""A kernel's command line and identity."""

from __future__ import annotations

import math
import re
import sys
import uuid
from collections.abc import Mapping, Sequence

from .errors import InvalidRequestError

MAX_LAUNCH_SECONDS = 86400
_PLACEHOLDER = re.compile(r"\{([A-Za-z0-9_]+)\}")


def fill(argv: Sequence[str], values: Mapping[str, object]) -> list[str]:
    """Return ``argv`` with ``{name}`` replaced from ``values``; unknown placeholders stay as they are.

    A leading ``python`` means the gateway's own interpreter, as Jupyter does it for every kernelspec.
    """
    command = [_PLACEHOLDER.sub(lambda match: str(values.get(match[1], match[0])), part) for part in argv]
    generic = {"python", f"python{sys.version_info[0]}", f"python{sys.version_info[0]}.{sys.version_info[1]}"}
    if command and command[0] in generic:
        command[0] = sys.executable
    return command


def check_kernel_id(kernel_id: object) -> str:
    """Return the kernel id that a client chose.

    Raises
    ------
    InvalidRequestError
        It is not the canonical text of a version 4 UUID.
    """
    if not is_kernel_id(kernel_id):
        raise InvalidRequestError(f"KERNEL_ID {str(kernel_id)[:64]!r} must be a version 4 UUID in lower case.")
    return str(kernel_id)


def is_kernel_id(kernel_id: object) -> bool:
    """Whether it is the canonical text of a version 4 UUID, as the ids of all kernels are."""
    try:
        return str(uuid.UUID(str(kernel_id), version=4)) == kernel_id
    except ValueError:
        return False


def check_launch_timeout(value: object) -> float:
    """Return the launch time-out in seconds that a client or kernelspec asked for; a kernelspec may hold a number.

    Raises
    ------
    InvalidRequestError
        It is not a positive number.
    """
    text = str(value)
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= MAX_LAUNCH_SECONDS:
        raise InvalidRequestError(
            f"KERNEL_LAUNCH_TIMEOUT {text[:32]!r} must be a positive number of seconds, at most {MAX_LAUNCH_SECONDS}."
        )
    return seconds

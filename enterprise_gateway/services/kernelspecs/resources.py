"""Files in a kernelspec directory: which ones may be read, and which part of one a client requests."""

from __future__ import annotations

import hashlib
import mimetypes
import os
import re
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path


@dataclass(frozen=True)
class Resource:
    """The contents of a file, with the values of its HTTP headers."""

    content: bytes
    content_type: str
    etag: str
    last_modified: str


def read_resource(resource_dir: str, path: str) -> Resource | None:
    """Read the file ``path`` below ``resource_dir``; blocks.

    Return None if there is no such file, if it is a directory, or if ``path`` or a symbolic link leads outside.
    """
    try:
        root = Path(resource_dir).resolve()
        file = (root / path).resolve()
        if not file.is_relative_to(root) or not file.is_file():
            return None
        with file.open("rb") as stream:
            content = stream.read()
            modified = os.fstat(stream.fileno()).st_mtime
    except (OSError, RuntimeError, ValueError):
        return None
    content_type, encoding = mimetypes.guess_type(path)
    return Resource(
        content,
        content_type if content_type and encoding is None else "application/octet-stream",
        f'"{hashlib.sha512(content).hexdigest()}"',
        formatdate(modified, usegmt=True),
    )


def requested_range(header: str, size: int) -> tuple[int, int] | None:
    """Return the first byte and the one after the last of a ``Range`` header, or None to send the whole file.

    Raises
    ------
    ValueError
        No byte of the range exists.
    """
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", header.strip())
    if match is None or match.groups() == ("", ""):
        return None
    first, last = match.groups()
    if not first:
        start, end = max(0, size - int(last)), size
    else:
        start, end = int(first), min(size, int(last) + 1) if last else size
        if last and int(last) < int(first):
            return None
    if start >= size or start >= end:
        raise ValueError(f"bytes {header} of {size}")
    return start, end

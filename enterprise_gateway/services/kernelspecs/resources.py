"""Files of a kernelspec directory: which may be read, and which part of one a client asks for."""

from __future__ import annotations

import hashlib
import mimetypes
import os
import re
from dataclasses import dataclass
from email.utils import formatdate


@dataclass(frozen=True)
class Resource:
    """A file's bytes with what its HTTP headers say."""

    content: bytes
    content_type: str
    etag: str
    last_modified: str


def read_resource(resource_dir: str, path: str) -> Resource | None:
    """Read the file ``path`` below ``resource_dir``; blocks.

    None when there is no such file, when it is a directory, or when ``path`` or a symbolic link leads outside.
    """
    root = os.path.realpath(resource_dir)
    try:
        file = os.path.realpath(os.path.join(root, path))
        if os.path.commonpath([root, file]) != root or not os.path.isfile(file):
            return None
        with open(file, "rb") as stream:
            content = stream.read()
            modified = os.fstat(stream.fileno()).st_mtime
    except (OSError, ValueError):
        return None
    content_type, encoding = mimetypes.guess_type(path)
    return Resource(
        content,
        content_type if content_type and encoding is None else "application/octet-stream",
        f'"{hashlib.sha512(content).hexdigest()}"',
        formatdate(modified, usegmt=True),
    )


def requested_range(header: str, size: int) -> tuple[int, int] | None:
    """Return the first byte and the one after the last of a ``Range`` header, or None to send everything.

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

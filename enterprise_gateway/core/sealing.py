"""Encrypts the secrets of session records, so that read access to the store does not give access to kernels."""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
from collections.abc import Iterator, Sequence
from typing import Any

from .errors import StoreUnavailableError
from .sessionrecords import Record, Session

_PREFIX = "eg-sealed:1"
_NONCE_BYTES, _TAG_BYTES = 12, 16
_SECRET_WORDS = ("secret", "credential", "password", "passwd", "token", "key")


class Sealer:
    """Seals and opens the secrets of session records with AES-256-GCM.

    Sealed are the connection keys, every value of ``launch_args.env`` and ``launch_args.kernel_headers`` (whatever its
    name: users put secrets anywhere), and what ``process_info`` calls a secret, credential, password, token or key.
    Each value is bound to its kernel and its place: one record's secret cannot be put into another.

    Parameters
    ----------
    keys
        32 bytes each. The first one seals, all of them open: this is how keys are rotated.
    """

    def __init__(self, keys: Sequence[bytes]) -> None:
        if not keys or any(len(key) != 32 for key in keys):
            raise ValueError("sealing needs at least one key, each of 32 bytes")
        self._keys = {hashlib.sha256(b"EG-seal-id" + key).hexdigest()[:8]: key for key in keys}
        self._first = next(iter(self._keys))

    @classmethod
    def from_text(cls, text: str) -> Sealer:
        """Read base64 keys, one a line; empty lines and those that start with ``#`` do not count.

        Raises
        ------
        ValueError
            A line is no base64 of 32 bytes, or there is none. The line is not repeated.
        """
        lines = [line.strip() for line in text.splitlines()]
        try:
            keys = [
                base64.b64decode(line.replace("-", "+").replace("_", "/"), validate=True)
                for line in lines
                if line and not line.startswith("#")
            ]
        except binascii.Error as error:
            raise ValueError("sealing keys must be base64 text, one a line") from error
        return cls(keys)

    def seal(self, session: Session) -> Session:
        """Return ``session`` (JSON types, changed in place) with its secrets sealed and listed in ``sealed``."""
        for kernel_id, record in session.items():
            paths = list(_secret_paths(record))
            for path in paths:
                holder = _holder(record, path)
                holder[path[-1]] = self._seal(holder[path[-1]], _place(kernel_id, path))
            record["sealed"] = paths
        return session

    def open(self, session: Session) -> Session:
        """Return ``session`` (changed in place) with what :meth:`seal` sealed in clear; others stay as they are.

        Raises
        ------
        StoreUnavailableError
            The key is not known, or the text was changed. The record is of use again when the key is there.
        """
        for kernel_id, record in session.items():
            try:
                for path in record.pop("sealed", None) or ():
                    holder = _holder(record, path)
                    holder[path[-1]] = self._open(holder[path[-1]], _place(kernel_id, path))
            except (AttributeError, LookupError, TypeError, ValueError) as error:
                raise StoreUnavailableError(
                    f"The session record of kernel {kernel_id} could not be unsealed; is the sealing key right?"
                ) from error
        return session

    def _seal(self, text: str, place: bytes) -> str:
        nonce = os.urandom(_NONCE_BYTES)
        cipher = _cipher(self._keys[self._first], nonce, place)
        sealed, tag = cipher.encrypt_and_digest(text.encode("utf-8", "surrogatepass"))
        return f"{_PREFIX}:{self._first}:{base64.b64encode(nonce + tag + sealed).decode()}"

    def _open(self, text: str, place: bytes) -> str:
        prefix, key_id, body = text.rsplit(":", 2)
        if prefix != _PREFIX:
            raise ValueError("not sealed by this version")
        blob = base64.b64decode(body, validate=True)
        nonce, tag = blob[:_NONCE_BYTES], blob[_NONCE_BYTES : _NONCE_BYTES + _TAG_BYTES]
        cipher = _cipher(self._keys[key_id], nonce, place)
        plain: bytes = cipher.decrypt_and_verify(blob[_NONCE_BYTES + _TAG_BYTES :], tag)
        return plain.decode("utf-8", "surrogatepass")


def refuse_sealed(session: Session) -> Session:
    """Return ``session`` if nothing in it is sealed; called where no sealing key is configured.

    Raises
    ------
    StoreUnavailableError
        A record is sealed: it is of use again when the key is configured.
    """
    for kernel_id, record in session.items():
        if record.get("sealed"):
            raise StoreUnavailableError(
                f"The session record of kernel {kernel_id} is sealed, but the gateway has no sealing key."
            )
        record.pop("sealed", None)
    return session


def _cipher(key: bytes, nonce: bytes, place: bytes) -> Any:
    from Cryptodome.Cipher import AES

    return AES.new(key, AES.MODE_GCM, nonce=nonce, mac_len=_TAG_BYTES).update(place)


def _place(kernel_id: str, path: Sequence[str]) -> bytes:
    return "\0".join(("EG-seal-v1", kernel_id, *path)).encode("utf-8", "surrogatepass")


def _holder(record: Record, path: Sequence[str]) -> dict[str, Any]:
    holder = record
    for name in path[:-1]:
        holder = holder[name]
    return holder


def _secret_paths(record: Record) -> Iterator[list[str]]:
    launch_args = record.get("launch_args")
    for section in ("env", "kernel_headers"):
        if isinstance(launch_args, dict) and isinstance(launch_args.get(section), dict):
            values = launch_args[section]
            yield from (["launch_args", section, name] for name, value in values.items() if isinstance(value, str))
    for section in ("connection_info", "process_info"):
        yield from _named_secrets([section], record.get(section))


def _named_secrets(path: list[str], value: Any) -> Iterator[list[str]]:
    if isinstance(value, dict):
        for name, entry in value.items():
            yield from _named_secrets([*path, name], entry)
    elif isinstance(value, str) and len(path) > 1 and any(word in path[-1].lower() for word in _SECRET_WORDS):
        yield path

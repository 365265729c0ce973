"""What launchers send: an encrypted message that says how a kernel can be reached.

The formats (versions 0, 1 and 2) are written down in ``docs/developers/launcher-protocol.md``, with test vectors.
Reading one takes two steps: :func:`parse` needs no key and tells version and, from version 2 on, the kernel id;
:meth:`KeyPair.open` decrypts and validates.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .connection import CHANNEL_PORTS, MAX_TEXT, ConnectionInfo, shown
from .errors import PayloadError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

KEY_BITS = 3072
_CONTEXT = b"EG-payload-v2"
_LOWEST_PORT = 1024


@dataclass(frozen=True)
class Envelope:
    """A launcher's message before decryption; ``kernel_id`` is empty when only the encrypted part names it."""

    version: int
    kernel_id: str = ""
    wrapped_key: str = field(default="", repr=False)
    nonce: bytes = field(default=b"", repr=False)
    content: bytes = field(default=b"", repr=False)


@dataclass(frozen=True)
class Report:
    """A decrypted and validated message: which kernel, how to reach it, and in which version it was told."""

    kernel_id: str
    version: int
    connection_info: ConnectionInfo


def parse(wire: bytes) -> Envelope:
    """Take a message apart without any key.

    Raises
    ------
    PayloadError
        It is no base64, or has an unknown version or missing entries.
    """
    outer = _base64(wire, "the message")
    try:
        message = json.loads(outer)
    except (ValueError, RecursionError):
        return Envelope(0, content=outer)
    if not isinstance(message, dict):
        raise PayloadError("the message is not an object")
    version = message.get("version")
    if not isinstance(version, int) or isinstance(version, bool) or version not in (1, 2):
        raise PayloadError(f"version must be 1 or 2, not {shown(version)}")
    content = _base64(_text(message, "conn_info"), "conn_info")
    wrapped_key = _text(message, "key")
    if version == 1:
        return Envelope(1, wrapped_key=wrapped_key, content=content)
    nonce = _base64(_text(message, "nonce"), "nonce")
    if len(nonce) != 12:
        raise PayloadError("nonce must be 12 bytes")
    return Envelope(2, _kernel_id(message), wrapped_key, nonce, content)


class KeyPair:
    """The gateway's RSA keys; the private one never leaves this object."""

    def __init__(self, private_key: RSAPrivateKey) -> None:
        from cryptography.hazmat.primitives.asymmetric.padding import MGF1, OAEP, PKCS1v15
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

        self._private_key = private_key
        self._oaep = OAEP(MGF1(SHA256()), SHA256(), None)
        self._pkcs1 = PKCS1v15()
        self._gcm = AESGCM
        public = private_key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        self.public_key = base64.b64encode(public).decode()
        """Base64 of the public key (X.509 SubjectPublicKeyInfo DER), one line, as launchers get it."""

    @classmethod
    def generate(cls, bits: int = KEY_BITS) -> KeyPair:
        """Make new keys, and load what :meth:`open` needs: call it through ``offload``, it may take half a second."""
        from cryptography.hazmat.primitives.asymmetric import rsa

        return cls(rsa.generate_private_key(public_exponent=65537, key_size=bits))

    def open(self, envelope: Envelope, secret: bytes | None = None) -> Report:
        """Decrypt and validate a message of version 1 or 2.

        Called by the response server, about a millisecond. ``secret`` is what the launcher was handed in its
        environment; version 2 needs it.

        Raises
        ------
        PayloadError
            The message cannot be decrypted, is not authentic, or what it holds is not usable.
        """
        wrapped = _base64(envelope.wrapped_key, "key")
        plain = self._open_v2(envelope, wrapped, secret) if envelope.version == 2 else self._open_v1(envelope, wrapped)
        report = _report(_json_object(plain), envelope.version)
        if envelope.version == 2 and report.kernel_id != envelope.kernel_id:
            raise PayloadError("the kernel id inside and outside of the message differ")
        return report

    def _open_v1(self, envelope: Envelope, wrapped: bytes) -> bytes:
        try:
            aes_key = self._private_key.decrypt(wrapped, self._pkcs1)
        except ValueError as error:
            raise PayloadError("the message was not encrypted with this gateway's key") from error
        return _unpad(_decrypt_ecb(aes_key, envelope.content))

    def _open_v2(self, envelope: Envelope, wrapped: bytes, secret: bytes | None) -> bytes:
        from cryptography.exceptions import InvalidTag

        if not secret:
            raise PayloadError("a message of version 2 came for a kernel that was given no secret")
        try:
            content_key = self._private_key.decrypt(wrapped, self._oaep)
        except ValueError as error:
            raise PayloadError("the message was not encrypted with this gateway's key") from error
        key = hmac.new(secret, _CONTEXT + content_key, hashlib.sha256).digest()
        authenticated = b"\0".join((_CONTEXT, envelope.kernel_id.encode(), envelope.wrapped_key.encode()))
        try:
            return self._gcm(key).decrypt(envelope.nonce, envelope.content, authenticated)
        except (InvalidTag, ValueError) as error:
            raise PayloadError("the message was not made with this launch's secret") from error


def open_legacy(envelope: Envelope, kernel_id: str) -> Report:
    """Decrypt a message of version 0, whose key is the kernel id itself.

    Called by the response server for each expected kernel when the operator has allowed version 0.

    Raises
    ------
    PayloadError
        The message is not of this kernel.
    """
    plain = _decrypt_ecb(kernel_id.encode()[:16], envelope.content)
    info = _json_object(plain[: plain.rfind(b"}") + 1])
    return _report({**info, "kernel_id": kernel_id}, 0)


def _report(info: Mapping[str, Any], version: int) -> Report:
    kernel_id = _kernel_id(info)
    try:
        connection_info = ConnectionInfo.from_dict(info)
        for name in (*CHANNEL_PORTS, "comm_port"):
            if 0 < getattr(connection_info, name) < _LOWEST_PORT:
                raise PayloadError(f"{name} must not be below {_LOWEST_PORT}")
    except PayloadError as error:
        error.kernel_id = kernel_id
        raise
    return Report(kernel_id, version, connection_info)


def _decrypt_ecb(key: bytes, content: bytes) -> bytes:
    """Decrypt what versions 0 and 1 prescribe; new messages are authenticated (version 2)."""
    from cryptography.hazmat.primitives.ciphers import Cipher
    from cryptography.hazmat.primitives.ciphers.algorithms import AES
    from cryptography.hazmat.primitives.ciphers.modes import ECB

    if len(key) != 16 or not content or len(content) % 16:
        raise PayloadError("the connection information is not encrypted as its version prescribes")
    decryptor = Cipher(AES(key), ECB()).decryptor()  # noqa: S305  # nosec B305 # what versions 0 and 1 prescribe
    return decryptor.update(content) + decryptor.finalize()


def _unpad(padded: bytes) -> bytes:
    count = padded[-1]
    if not 0 < count <= 16 or padded[-count:] != bytes([count]) * count:
        raise PayloadError("the connection information cannot be decrypted")
    return padded[:-count]


def _json_object(text: bytes) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PayloadError("the connection information is not JSON") from error
    if not isinstance(value, dict):
        raise PayloadError("the connection information is not an object")
    return value


def _text(message: Mapping[str, Any], name: str) -> str:
    value = message.get(name)
    if not isinstance(value, str) or not value:
        raise PayloadError(f"{name} is missing")
    return value


def _kernel_id(message: Mapping[str, Any]) -> str:
    """Return the kernel that a message names: a text that may be logged."""
    value = message.get("kernel_id")
    if not isinstance(value, str) or not value.isprintable() or not 0 < len(value) <= MAX_TEXT:
        raise PayloadError("the message names no kernel")
    return value


def _base64(text: str | bytes, what: str) -> bytes:
    try:
        return base64.b64decode(text.strip(), validate=True)
    except (binascii.Error, ValueError) as error:
        raise PayloadError(f"{what} is not base64") from error

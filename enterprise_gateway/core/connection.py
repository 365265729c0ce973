"""How a kernel is reached: five ports, an address and the keys."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .errors import PayloadError

MAX_TEXT = 255
HIGHEST_PROCESS_ID = 2**31 - 1  # what a pid_t holds
_HASHES = frozenset(f"hmac-{name}" for name in hashlib.algorithms_guaranteed if not name.startswith("shake"))

CHANNEL_PORTS = ("shell_port", "iopub_port", "stdin_port", "control_port", "hb_port")


@dataclass(frozen=True)
class ConnectionInfo:
    """One kernel's connection information, as launchers report it and connection files hold it.

    ``key`` signs messages (HMAC); the Curve keys, when present, encrypt the transport (Z85, 40 characters).
    ``comm_port``, ``pid`` and ``pgid`` are the launcher's: the port that takes signals, and its process; 0 means
    unknown. Secrets never show in ``repr``.
    """

    ip: str
    shell_port: int
    iopub_port: int
    stdin_port: int
    control_port: int
    hb_port: int
    key: bytes = field(repr=False)
    transport: str = "tcp"
    signature_scheme: str = "hmac-sha256"
    kernel_name: str = ""
    comm_port: int = 0
    pid: int = 0
    pgid: int = 0
    curve_publickey: bytes | None = field(default=None, repr=False)
    curve_secretkey: bytes | None = field(default=None, repr=False)

    @classmethod
    def from_dict(cls, info: Mapping[str, Any]) -> ConnectionInfo:
        """Validate a decoded JSON object and keep what is known of it.

        Raises
        ------
        PayloadError
            A port is missing or outside 1..65535, the key is missing, the transport is not tcp, the signature
            scheme is not an HMAC of a known hash, a Curve key comes alone or is malformed, or something is a text
            that cannot be used. Nothing else is raised, whatever ``info`` holds.
        """
        if info.get("transport", "tcp") != "tcp":
            raise PayloadError(f"transport must be tcp, not {shown(info.get('transport'))}")
        scheme = info.get("signature_scheme", "hmac-sha256")
        if not isinstance(scheme, str) or scheme not in _HASHES:
            raise PayloadError(f"signature_scheme must be hmac-<hash>, not {shown(scheme)}")
        key = _as_bytes(info, "key")
        if not key:
            raise PayloadError("the connection information has no key")
        curve_public, curve_secret = _as_bytes(info, "curve_publickey"), _as_bytes(info, "curve_secretkey")
        if bool(curve_public) != bool(curve_secret) or any(len(k) != 40 for k in (curve_public, curve_secret) if k):
            raise PayloadError("curve_publickey and curve_secretkey must both be Z85 keys of 40 characters")
        return cls(
            ip=_text(info, "ip") or "0.0.0.0",
            shell_port=_port(info, "shell_port"),
            iopub_port=_port(info, "iopub_port"),
            stdin_port=_port(info, "stdin_port"),
            control_port=_port(info, "control_port"),
            hb_port=_port(info, "hb_port"),
            key=key,
            signature_scheme=scheme,
            kernel_name=_text(info, "kernel_name"),
            comm_port=_port(info, "comm_port") if info.get("comm_port") else 0,
            pid=_process_id(info.get("pid")),
            pgid=_process_id(info.get("pgid")),
            curve_publickey=curve_public or None,
            curve_secretkey=curve_secret or None,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return what a connection file holds (keys as text), without the launcher's own entries."""
        info: dict[str, Any] = {name: getattr(self, name) for name in CHANNEL_PORTS}
        info.update(
            ip=self.ip,
            key=self.key.decode(),
            transport=self.transport,
            signature_scheme=self.signature_scheme,
            kernel_name=self.kernel_name,
        )
        if self.curve_publickey and self.curve_secretkey:
            info.update(curve_publickey=self.curve_publickey.decode(), curve_secretkey=self.curve_secretkey.decode())
        return info


def shown(value: Any) -> str:
    """Return a short, one-line form of an untrusted value, for log lines and errors."""
    if value is None or isinstance(value, str | int | float):
        return repr(value)[:40]
    return f"a {type(value).__name__}"  # it may hold whatever there is, and be of any depth


def _port(info: Mapping[str, Any], name: str) -> int:
    value = info.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 65536:
        raise PayloadError(f"{name} must be a port number, not {shown(value)}")
    return value


def _text(info: Mapping[str, Any], name: str) -> str:
    """Return a text that may be logged; empty where there is none."""
    value = info.get(name) or ""
    if not isinstance(value, str) or not value.isprintable() or len(value) > MAX_TEXT:
        raise PayloadError(f"{name} must be a short text, not {shown(value)}")
    return value


def _as_bytes(info: Mapping[str, Any], name: str) -> bytes:
    value = info.get(name)
    if not isinstance(value, str):
        return value if isinstance(value, bytes) else b""
    try:
        return value.encode()
    except UnicodeEncodeError as error:
        raise PayloadError(f"{name} is no text that can be encoded") from error


def _process_id(value: Any) -> int:
    """Return a process (group) id that may be signalled: the Scala launcher sends text, 0 and 1 are never ours."""
    try:
        number = int(value)
    except (TypeError, ValueError, OverflowError):
        return 0
    return number if 1 < number <= HIGHEST_PROCESS_ID else 0

"""What launchers send, made up at random: whatever it is, it is a report or a PayloadError."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
from typing import Any

from cryptography.hazmat.primitives.asymmetric.padding import MGF1, OAEP, PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import ECB
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_der_public_key
from hypothesis import given
from hypothesis import strategies as st

from enterprise_gateway.core.errors import PayloadError
from enterprise_gateway.core.payload import Envelope, KeyPair, Report, open_legacy, parse

KERNEL_ID = "6f0f1a62-0c6c-4d29-a3a5-1e5b8f1f7c11"
SECRET = b"the secret of a launch"
KEYS = KeyPair.generate(2048)
_public = load_der_public_key(base64.b64decode(KEYS.public_key))
assert isinstance(_public, RSAPublicKey)
PUBLIC = _public
OAEP_SHA256 = OAEP(MGF1(SHA256()), SHA256(), None)
INFO = {
    **dict.fromkeys(("shell_port", "iopub_port", "stdin_port", "control_port", "hb_port", "comm_port"), 40000),
    "key": "a0b1c2d3",
    "kernel_id": KERNEL_ID,
    "pid": 4321,
    "pgid": 4321,
    "ip": "0.0.0.0",
    "kernel_name": "",
    "transport": "tcp",
    "signature_scheme": "hmac-sha256",
    "curve_publickey": None,
    "curve_secretkey": None,
}

# Half a surrogate pair is a text in JSON and in Python, and in no other place.
NASTY = [
    "\ud800",
    "\udfff" * 40,
    "line\nline",
    "\u2028",
    "\x1b[2J",
    "hmac-none",
    "hmac-shake_128",
    "9" * 4000,
    "x" * 5000,
]
NUMBERS = [float("inf"), float("-inf"), float("nan"), 10**4000, -(10**4000), 2**31, 2**63, 1.5, True]
texts = st.one_of(st.sampled_from(NASTY), st.text(st.characters(codec=None, exclude_categories=()), max_size=50))
numbers = st.one_of(st.sampled_from(NUMBERS), st.integers(), st.floats())
leaves = st.one_of(texts, numbers, numbers.map(str), st.none())
deep = st.integers(1, 15000).map(lambda depth: Raw("[" * depth + "]" * depth))
values = st.one_of(
    leaves, leaves, leaves, st.lists(leaves, max_size=3), st.dictionaries(texts, leaves, max_size=3), deep
)


class Raw(str):
    """JSON that stands in another JSON text as it is: Python's encoder goes less deep than its decoder."""

    __slots__ = ()


def document(entries: dict[str, Any]) -> bytes:
    """Return a JSON object, as a launcher would write it that follows no rule of ours."""
    members = (
        f"{json.dumps(name)}: {value if isinstance(value, Raw) else json.dumps(value)}"
        for name, value in entries.items()
    )
    return f"{{{', '.join(members)}}}".encode()


def changes(names: tuple[str, ...]) -> st.SearchStrategy[dict[str, Any]]:
    """Return entries of which most have the right name, and few a right value."""
    return st.dictionaries(st.one_of(st.sampled_from(names), texts), values, max_size=4)


one_changed = st.builds(lambda name, value: document({**INFO, name: value}), st.sampled_from(tuple(INFO)), values)
contents = st.one_of(
    *([one_changed] * 6),
    changes(tuple(INFO)).map(lambda entries: document({**INFO, **entries})),
    st.one_of(changes(tuple(INFO)).map(document), st.binary(max_size=200), deep.map(str.encode)),
)


def padded(content: bytes) -> bytes:
    count = 16 - len(content) % 16
    return content + bytes([count]) * count


def ecb(key: bytes, content: bytes) -> bytes:
    encryptor = Cipher(AES(key), ECB()).encryptor()
    return encryptor.update(content) + encryptor.finalize()


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def sealed_v1(content: bytes) -> dict[str, Any]:
    """Return the entries of a message that anybody can make who has seen a launcher's command line."""
    key = os.urandom(16)
    return {"version": 1, "key": text(PUBLIC.encrypt(key, PKCS1v15())), "conn_info": text(ecb(key, padded(content)))}


def sealed_v2(content: bytes, kernel_id: str = KERNEL_ID) -> dict[str, Any]:
    """Return the entries of a message of who holds the launch's secret."""
    content_key, nonce = os.urandom(32), os.urandom(12)
    wrapped = text(PUBLIC.encrypt(content_key, OAEP_SHA256))
    aead_key = hmac.new(SECRET, b"EG-payload-v2" + content_key, hashlib.sha256).digest()
    authenticated = b"\0".join((b"EG-payload-v2", kernel_id.encode(), wrapped.encode()))
    sealed = AESGCM(aead_key).encrypt(nonce, content, authenticated)
    return {"version": 2, "kernel_id": kernel_id, "key": wrapped, "nonce": text(nonce), "conn_info": text(sealed)}


def check(report: Report) -> None:
    """Do with a report what the gateway does."""
    info = report.connection_info
    assert report.kernel_id.isprintable()
    json.dumps(info.to_dict()).encode()
    hmac.new(info.key, digestmod=info.signature_scheme.removeprefix("hmac-")).hexdigest()
    for process_id in (info.pid, info.pgid):
        assert process_id == 0 or 1 < process_id < 2**31
    f"{report!r}".encode()


def check_sentence(text: str) -> None:
    """Whether it can stand in any log, in one line, as it is part of a launch's error."""
    assert text.isprintable()


def read(wire: bytes, secret: bytes | None) -> None:
    try:
        envelope = parse(wire)
        f"{envelope!r}{envelope.kernel_id}".encode()
        check(KEYS.open(envelope, secret) if envelope.version else open_legacy(envelope, KERNEL_ID))
    except PayloadError as error:
        check_sentence(f"{error} {error.kernel_id}")


@given(st.one_of(st.binary(max_size=300), st.binary(max_size=300).map(base64.b64encode)))
def test_any_bytes_are_a_report_or_refused(wire: bytes) -> None:
    """Bytes, and base64 of bytes, lead to nothing but a PayloadError."""
    read(wire, SECRET)


@given(changes(("version", "key", "nonce", "conn_info", "kernel_id")), st.sampled_from([None, 1, 2]))
def test_any_outer_object_is_a_report_or_refused(entries: dict[str, Any], version: int | None) -> None:
    """Entries that are missing, of another type, or right one by one lead to nothing else either."""
    right = {} if version is None else sealed_v1(document(INFO)) if version == 1 else sealed_v2(document(INFO))
    read(base64.b64encode(document({**right, **entries})), SECRET)


@given(deep)
def test_depth_is_refused(nested: str) -> None:
    """Lists in lists, as deep as a message has room for, are refused and break nothing."""
    read(base64.b64encode(nested.encode()), SECRET)
    read(base64.b64encode(b'{"version": ' + nested.encode() + b"}"), SECRET)


@given(contents)
def test_what_is_inside_of_version_1_is_a_report_or_refused(content: bytes) -> None:
    """What anybody may encrypt reaches the validation, and is refused there at the latest."""
    read(base64.b64encode(json.dumps(sealed_v1(content)).encode()), None)


@given(contents)
def test_what_is_inside_of_version_2_is_a_report_or_refused(content: bytes) -> None:
    """So is what a launcher says that holds the secret."""
    read(base64.b64encode(json.dumps(sealed_v2(content)).encode()), SECRET)


@given(contents)
def test_what_is_inside_of_version_0_is_a_report_or_refused(content: bytes) -> None:
    """So is what is encrypted with the kernel's id."""
    try:
        check(open_legacy(Envelope(0, content=ecb(KERNEL_ID[:16].encode(), padded(content))), KERNEL_ID))
    except PayloadError as error:
        check_sentence(str(error))


@given(texts, contents)
def test_any_kernel_id_outside_is_a_report_or_refused(kernel_id: str, content: bytes) -> None:
    """The id outside of a message may be no text of any encoding."""
    read(base64.b64encode(document({**sealed_v2(content), "kernel_id": kernel_id})), SECRET)

"""The messages in which launchers report: every version read, and every lie refused."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import ECB
from cryptography.hazmat.primitives.serialization import load_der_private_key

from enterprise_gateway.core.connection import ConnectionInfo
from enterprise_gateway.core.errors import PayloadError
from enterprise_gateway.core.payload import KEY_BITS, KeyPair, open_legacy, parse

ROOT = Path(__file__).parents[2]
LAUNCHER = ROOT / "etc" / "kernel-launchers" / "python" / "scripts" / "launch_ipykernel.py"
DOCUMENT = (ROOT / "docs" / "developers" / "launcher-protocol.md").read_text()
VECTORS: dict[str, Any] = json.loads(re.findall(r"```json\n(.*?)```", DOCUMENT, re.DOTALL)[-1])
SECRET = VECTORS["secret"].encode()
INFO = VECTORS["payload_v2"]["connection_info"]


@pytest.fixture(scope="module")
def keys() -> KeyPair:
    private_key = load_der_private_key(base64.b64decode(VECTORS["private_key_pkcs8"]), None)
    assert isinstance(private_key, RSAPrivateKey)
    return KeyPair(private_key)


@pytest.fixture(scope="module")
def encode() -> Callable[..., bytes]:
    """The Python launcher's encoder, an implementation by another library."""
    return runpy.run_path(str(LAUNCHER))["encode_payload"]


def changed(wire: str | bytes, **entries: Any) -> bytes:
    """Return a message with some of its outer entries changed."""
    return base64.b64encode(json.dumps({**json.loads(base64.b64decode(wire)), **entries}).encode())


def test_documented_vectors_are_read(keys):
    """The documentation's messages of version 1 and 2 yield the connection information that stands beside them."""
    assert keys.public_key == VECTORS["public_key"]
    for version, secret in ((1, None), (2, SECRET)):
        vector = VECTORS[f"payload_v{version}"]
        report = keys.open(parse(vector["wire"].encode()), secret)
        assert (report.kernel_id, report.version) == (VECTORS["kernel_id"], version)
        assert report.connection_info == ConnectionInfo.from_dict(vector["connection_info"])


def test_documented_derivations_hold():
    """The keys and the MAC in the documentation follow from its secret by its formulas."""
    vector = VECTORS["payload_v2"]
    content_key = bytes.fromhex(vector["content_key_hex"])
    assert hmac.new(SECRET, b"EG-payload-v2" + content_key, hashlib.sha256).hexdigest() == vector["aead_key_hex"]
    comm = VECTORS["comm_v2"]
    comm_key = hmac.new(SECRET, b"EG-comm-v2", hashlib.sha256)
    assert comm_key.hexdigest() == comm["comm_key_hex"]
    signed = f"{comm['challenge']}.{comm['seq']}.{comm['command']}".encode()
    assert hmac.new(comm_key.digest(), signed, hashlib.sha256).hexdigest() == comm["mac"]


@pytest.mark.parametrize("secret", [None, SECRET])
def test_generated_keys_serve_the_launcher(encode, secret):
    """What the Python launcher encodes for a newly generated key pair is read, in both versions."""
    keys = KeyPair.generate()
    assert len(base64.b64decode(keys.public_key)) > KEY_BITS // 8 >= 256
    report = keys.open(parse(encode(INFO, keys.public_key, secret)), secret)
    assert report.version == (2 if secret else 1)
    assert report.connection_info.key.decode() == INFO["key"]


def test_pretty_printed_messages_are_read(keys):
    """White space in the JSON and around the message, as other launchers send it, does not matter."""
    message = json.loads(base64.b64decode(VECTORS["payload_v1"]["wire"]))
    wire = base64.b64encode(json.dumps(message, indent=4).encode()) + b"\n"
    assert keys.open(parse(wire)).kernel_id == VECTORS["kernel_id"]


@pytest.mark.parametrize(
    "wire",
    [
        b"",
        b"GET / HTTP/1.1",
        b"\x00\xff" * 50,
        base64.b64encode(b"[1, 2]"),
        base64.b64encode(b"[" * 20000),
        changed(VECTORS["payload_v1"]["wire"], version=3),
        changed(VECTORS["payload_v1"]["wire"], version="1"),
        changed(VECTORS["payload_v1"]["wire"], version=True),
        changed(VECTORS["payload_v1"]["wire"], key=7),
        changed(VECTORS["payload_v1"]["wire"], conn_info=None),
        changed(VECTORS["payload_v1"]["wire"], key="/+=", conn_info="AAAA"),
        changed(VECTORS["payload_v1"]["wire"], key="AAAA"),
        changed(VECTORS["payload_v1"]["wire"], conn_info="AAAA"),
        changed(VECTORS["payload_v1"]["wire"], conn_info=base64.b64encode(b"x" * 64).decode()),
        changed(VECTORS["payload_v2"]["wire"], nonce="AAAA"),
        changed(VECTORS["payload_v2"]["wire"], nonce=base64.b64encode(b"n" * 12).decode()),
        changed(VECTORS["payload_v2"]["wire"], kernel_id="another"),
        changed(VECTORS["payload_v2"]["wire"], kernel_id=""),
        changed(VECTORS["payload_v2"]["wire"], conn_info="AAAA"),
        changed(VECTORS["payload_v2"]["wire"], key=json.loads(base64.b64decode(VECTORS["payload_v1"]["wire"]))["key"]),
        changed(VECTORS["payload_v1"]["wire"], version=2, nonce="AAAAAAAAAAAAAAAA", kernel_id=VECTORS["kernel_id"]),
    ],
)
def test_malformed_messages_are_refused(keys, wire):
    """Whatever is sent, the answer is a PayloadError and no other exception."""
    with pytest.raises(PayloadError):
        keys.open(parse(wire), SECRET)


@pytest.mark.parametrize("secret", [None, b"", b"another secret", SECRET + b"\n"])
def test_version_2_needs_the_secret(keys, secret):
    """Who does not hold the launch's secret cannot make a message of version 2."""
    with pytest.raises(PayloadError, match="secret"):
        keys.open(parse(VECTORS["payload_v2"]["wire"].encode()), secret)


def test_another_gateways_message_is_refused(keys, encode):
    """A message that was encrypted for another key is refused in either version."""
    other = KeyPair.generate(2048)
    for secret in (None, SECRET):
        with pytest.raises(PayloadError):
            keys.open(parse(encode(INFO, other.public_key, secret)), secret)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"shell_port": 80}, "shell_port must not be below 1024"),
        ({"shell_port": 0}, "shell_port"),
        ({"hb_port": "40005"}, "hb_port"),
        ({"control_port": 65536}, "control_port"),
        ({"comm_port": 22}, "comm_port"),
        ({"comm_port": -1}, "comm_port"),
        ({"key": ""}, "no key"),
        ({"transport": "ipc"}, "tcp"),
        ({"signature_scheme": "none"}, "hmac"),
        ({"curve_publickey": "x" * 40}, "both"),
        ({"kernel_id": 5}, "names no kernel"),
        ({"kernel_id": ""}, "names no kernel"),
    ],
)
def test_unusable_connection_information_is_refused(keys, encode, entries, message):
    """Connection information is validated before anything uses it, and the error names the entry."""
    with pytest.raises(PayloadError, match=message):
        keys.open(parse(encode({**INFO, **entries}, keys.public_key, None)))


def test_process_ids_that_must_not_be_signalled_are_dropped(keys, encode):
    """A process (group) id of 0, 1 or -1 could make a signal hit others: such are taken for unknown."""
    for bad in (0, 1, -1, "1", "x", None, []):
        info = keys.open(parse(encode({**INFO, "pid": bad, "pgid": bad}, keys.public_key, None))).connection_info
        assert (info.pid, info.pgid) == (0, 0)
    assert keys.open(parse(encode({**INFO, "pid": "4321"}, keys.public_key, None))).connection_info.pid == 4321


def legacy(info: dict[str, Any], kernel_id: str) -> bytes:
    text = json.dumps(info)
    encryptor = Cipher(AES(kernel_id[:16].encode()), ECB()).encryptor()
    return base64.b64encode(encryptor.update((text + "%" * (-len(text) % 16)).encode()) + encryptor.finalize())


def test_legacy_message_is_read():
    """A message of version 0 is told from others and read with the kernel id as its key."""
    envelope = parse(legacy({k: v for k, v in INFO.items() if k != "kernel_id"}, VECTORS["kernel_id"]))
    assert envelope.version == 0
    report = open_legacy(envelope, VECTORS["kernel_id"])
    assert (report.kernel_id, report.version) == (VECTORS["kernel_id"], 0)
    with pytest.raises(PayloadError):
        open_legacy(envelope, "another-kernel-id-of-36-characters")


def test_secrets_do_not_show():
    """Neither the message nor what was read from it shows keys in its repr."""
    envelope = parse(VECTORS["payload_v2"]["wire"].encode())
    assert envelope.wrapped_key not in repr(envelope)
    assert INFO["key"] not in repr(ConnectionInfo.from_dict(INFO))

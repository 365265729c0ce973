"""The communication port's caller, against listeners that do not behave; tests/launcher has it with true ones."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from enterprise_gateway.transport.commport import CommPort, CommPortError

GREETING = b'{"version": 2, "challenge": "' + b"ab" * 16 + b'"}\n'


@contextmanager
def listener(*answers: bytes, connections: int = 1, linger: float = 0.0) -> Iterator[tuple[int, list[bytes]]]:
    """Serve connections one after the other: send one answer, receive, send the next … then close."""
    received: list[bytes] = []

    def serve() -> None:
        for _ in range(connections):
            with suppress(OSError), server.accept()[0] as peer:
                peer.settimeout(5)
                for answer in answers:
                    peer.sendall(answer)
                    received.append(peer.recv(65536))
                time.sleep(linger)

    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(5)
        thread = threading.Thread(target=serve)
        thread.start()
        yield server.getsockname()[1], received
        thread.join()


def caller(port: int, secret: bytes | None = b"secret", timeout: float = 1.0) -> CommPort:
    return CommPort("127.0.0.1", port, kernel_id="kernel", secret=secret, timeout=timeout)


@pytest.mark.parametrize("secret", [None, b"secret"])
def test_refused_connection_means_gone(secret):
    """Where nobody listens any more, every verb says that the launcher is gone."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    comm = caller(port, secret)
    assert (comm.probe(), comm.signal(9), comm.shutdown()) == (False, False, False)


def test_version_1_sends_one_object_per_connection():
    """Without a secret, commands are plain objects, each ended by the end of its connection."""
    with listener(b"", connections=2) as (port, received):
        comm = caller(port, None)
        assert comm.signal(2)
        assert comm.shutdown()
        assert comm.duplicate() is None
    assert [json.loads(text) for text in received] == [{"signum": 2}, {"shutdown": 1}]


def test_version_2_keeps_its_connection():
    """With a secret, commands of one connection are counted, and the connection is there to be watched."""
    with listener(GREETING, b'{"seq": 1, "ok": true}\n', b'{"seq": 2, "ok": true}\n') as (port, received):
        comm = caller(port)
        assert comm.probe()
        with comm.duplicate() as watched:
            with pytest.raises(BlockingIOError):
                watched.recv(1)  # it is looked at on the loop
            assert comm.signal(2)
            comm.close()
            assert watched.recv(1) == b""  # the end, for those who watch; the handle is their own
        assert comm.duplicate() is None
    lines = [json.loads(text) for text in received if text]
    assert [(line["seq"], json.loads(line["command"])) for line in lines] == [(1, {"signum": 0}), (2, {"signum": 2})]
    assert len({line["mac"] for line in lines}) == 2


@pytest.mark.parametrize(
    "answers",
    [
        (b"not json\n",),
        (b"[1]\n",),
        (b'{"version": 3, "challenge": "' + b"ab" * 16 + b'"}\n',),
        (b'{"version": 2, "challenge": "short"}\n',),
        (b"x" * 70000,),
        (GREETING, b'{"seq": 7, "ok": true}\n'),
        (GREETING, b'{"seq": 1, "ok": "true"}\n'),
        (GREETING, b'{"seq": 1, "ok": false, "error": "no"}\n'),
    ],
)
def test_wrong_answers_are_errors(answers):
    """A listener that answers nonsense, or no, is not taken for a kernel that is gone or well."""
    with listener(*answers, linger=0.1) as (port, _):
        comm = caller(port)
        with pytest.raises(CommPortError):
            comm.probe()
        comm.close()


@pytest.mark.parametrize("answers", [(), (GREETING,)])
def test_closed_connection_means_gone(answers):
    """Connections that end without an answer, twice, are those of a tunnel whose far end is gone."""
    with listener(*answers, connections=2) as (port, _):
        assert caller(port).probe() is False


def test_silence_is_not_death():
    """A listener that does not answer in time leaves it open whether the kernel lives."""
    with listener(GREETING[:10], linger=0.5) as (port, _):
        started = time.monotonic()
        with pytest.raises(TimeoutError):
            caller(port, timeout=0.2).probe()
        assert time.monotonic() - started < 1


def test_secret_does_not_show():
    """Neither secret nor key is part of the repr."""
    assert repr(caller(1234)) == "<CommPort of kernel kernel at 127.0.0.1:1234>"


DEEP = b"[" * 30000 + b"]" * 30000


@pytest.mark.parametrize(
    "answers",
    [
        (b'{"version": 2, "challenge": "' + b"\\ud800" * 40 + b'"}\n',),
        (b'{"version": 2, "challenge": "' + b"ab" * 15 + b"\\ud800\\n" + b'"}\n',),
        (DEEP + b"\n",),
        (GREETING, DEEP + b"\n"),
        (GREETING, b'{"seq": 1, "ok": false, "error": ' + DEEP + b"}\n"),
        (GREETING, b'{"seq": 1, "ok": false, "error": "\\ud800\\nERROR forged"}\n'),
        (GREETING, b'{"seq": 1, "ok": false, "error": {"a": [1]}}\n'),
        (GREETING, b'{"seq": 1' + b"0" * 5000 + b', "ok": true}\n'),
    ],
    ids=["surrogates", "line", "deep-greeting", "deep-answer", "deep-reason", "lines", "object", "number"],
)
def test_whatever_is_answered_is_one_error_in_one_line(answers):
    """What cannot be used is a CommPortError, which the gateway deals with, whose text is good for any log."""
    with listener(*answers) as (port, _):
        comm = caller(port)
        with pytest.raises(CommPortError) as caught:
            comm.signal(2)
        comm.close()
    str(caught.value).encode()
    assert str(caught.value).isprintable()

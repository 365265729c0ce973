"""What one gateway records about a kernel for the next."""

from __future__ import annotations

import json

import pytest

from enterprise_gateway.transport.messages import MessageFactory
from enterprise_gateway.transport.openrequests import (
    MAX_BYTES,
    MAX_HEADER_BYTES,
    MAX_RECORDED,
    MAX_REQUESTS,
    OpenRequests,
    Request,
)
from enterprise_gateway.transport.resumption import Memory


def test_a_memory_is_restored_from_its_record() -> None:
    """What is written as JSON is what is read."""
    memory = Memory("busy", 1e9, 9e8, '{"msg_id": "a"}', ('{"msg_id": "a"}',), (("s1", "s2"), ("s3",)), ("a", "b"))
    assert Memory.from_record(json.loads(json.dumps(memory.to_record()))) == memory


@pytest.mark.parametrize(
    "record",
    [None, "text", [], {}, {"execution_state": 5, "last_activity": "now", "requests": "x", "sessions": {}, "new": 1}],
)
def test_records_of_other_versions_are_accepted(record: object) -> None:
    """What is missing, or of another type, is treated as unknown."""
    assert Memory.from_record(record) == Memory()


def add(requests: OpenRequests, msg_id: str, *, filler: str = "", msg_type: str = "execute_request") -> None:
    """Note a request of the session ``s``."""
    raw = json.dumps({"msg_id": msg_id, "session": "s", "filler": filler}).encode()
    requests.add(("s", msg_id), Request("shell", msg_type, raw))


def test_open_requests_are_bounded() -> None:
    """The oldest are discarded, by number and by bytes; a header that is too large is not kept at all."""
    requests = OpenRequests()
    for number in range(MAX_REQUESTS + 5):
        add(requests, str(number))
    assert not requests.has(("s", "4"))
    assert requests.has(("s", "5"))
    add(requests, "large", filler="x" * MAX_HEADER_BYTES)
    assert not requests.has(("s", "large"))
    for number in range(40):
        add(requests, f"big {number}", filler="x" * (MAX_BYTES // 20))
    kept = requests.take()
    assert len(kept) == 19
    assert sum(len(request.raw_header) for request in kept) < MAX_BYTES
    assert not requests


def test_unanswered_execute_requests_are_recorded() -> None:
    """The oldest first, up to a limit; the next gateway restores them, and skips what is not a header."""
    requests = OpenRequests()
    for number in range(MAX_RECORDED + 5):
        add(requests, str(number))
    add(requests, "other", msg_type="complete_request")
    requests.note_reply(("s", "0"))
    requests.note_reply(("s", "unknown"))
    texts = requests.texts()
    assert [json.loads(text)["msg_id"] for text in texts] == [str(number) for number in range(1, MAX_RECORDED + 1)]
    other = OpenRequests()
    other.restore((*texts, "{", "[]"))
    assert len(other.take()) == MAX_RECORDED


def test_a_lost_reply_is_replaced_by_an_error() -> None:
    """Error, reply and idle, each with the request as parent; only what is still missing, and only what is due."""
    requests = OpenRequests()
    for msg_id, msg_type in (("run", "execute_request"), ("done", "execute_request"), ("comm", "comm_msg")):
        add(requests, msg_id, msg_type=msg_type)
        requests.note_state(("s", msg_id), "busy")
    add(requests, "queued")
    add(requests, "info", msg_type="is_complete_request")
    requests.note_reply(("s", "done"))
    requests.note_state(("s", "comm"), "idle")
    messages = [
        message for request in requests.take() for message in request.failure(MessageFactory(), "KernelDied", "why", {})
    ]
    assert [(message.parent["msg_id"], message.msg_type) for message in messages] == [
        ("done", "status"),
        ("run", "error"),
        ("run", "execute_reply"),
        ("run", "status"),
        ("queued", "execute_reply"),
        ("queued", "status"),
        ("info", "is_complete_reply"),
        ("info", "status"),
    ]

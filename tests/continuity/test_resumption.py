"""What one gateway leaves to the next about a kernel."""

from __future__ import annotations

import json

import pytest

from enterprise_gateway.transport.messages import MessageFactory
from enterprise_gateway.transport.resumption import MAX_REQUESTS, Memory, OpenRequests, lost_reply


def test_a_memory_survives_the_record() -> None:
    """What is written comes back, through JSON."""
    memory = Memory("busy", 1e9, 9e8, '{"msg_id": "a"}', ('{"msg_id": "a"}',), (("s1", "s2"), ("s3",)), "identity")
    assert Memory.from_record(json.loads(json.dumps(memory.to_record()))) == memory


@pytest.mark.parametrize(
    "record",
    [None, "text", [], {}, {"execution_state": 5, "last_activity": "now", "requests": "x", "sessions": {}, "new": 1}],
)
def test_records_of_other_versions_are_no_obstacle(record: object) -> None:
    """What is missing, or of another type, is as if it were not known."""
    assert Memory.from_record(record) == Memory()


def test_open_requests_are_bounded() -> None:
    """The oldest are forgotten; those answered, and what is no header, too."""
    requests = OpenRequests()
    for number in range(MAX_REQUESTS + 5):
        requests.note(str(number), json.dumps({"msg_id": str(number)}).encode())
    requests.answered("50")
    requests.answered(None)
    texts = requests.texts()
    assert len(texts) == MAX_REQUESTS - 1
    assert json.loads(texts[0]) == {"msg_id": "5"}
    other = OpenRequests()
    other.restore((*texts, "{", "[]"))
    assert len(other.take_all()) == MAX_REQUESTS - 1
    assert other.texts() == ()


def test_a_lost_reply_ends_the_waiting() -> None:
    """Error, idle and reply, each with the request as parent."""
    request = json.dumps({"msg_id": "a", "session": "s", "msg_type": "execute_request"}).encode()
    messages = lost_reply(MessageFactory(), request)
    assert [message.msg_type for message in messages] == ["error", "status", "execute_reply"]
    assert all(message.parent["msg_id"] == "a" for message in messages)

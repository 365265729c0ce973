"""What a launcher's communication port says, made up at random: it is understood, or a CommPortError."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from enterprise_gateway.transport.commport import CommPortError, read_answer, read_greeting

texts = st.one_of(
    st.sampled_from(["\ud800", "\ud800" * 40, "line\nline", "\x1b[2J", "ab" * 16, "x" * 60000]),
    st.text(st.characters(codec=None, exclude_categories=())),
)
numbers = st.one_of(st.sampled_from([float("inf"), float("nan"), 10**4000, 1, 2, True]), st.integers(), st.floats())
leaves = st.one_of(texts, numbers, st.none())
deep = st.integers(1, 15000).map(lambda depth: "[" * depth + "]" * depth)
values = st.one_of(
    leaves.map(json.dumps),
    st.lists(leaves, max_size=3).map(json.dumps),
    st.dictionaries(texts, leaves, max_size=3).map(json.dumps),
    deep,
)
NAMES = ("version", "challenge", "seq", "ok", "error")


def line(entries: dict[str, str]) -> bytes:
    return f"{{{', '.join(f'{json.dumps(name)}: {value}' for name, value in entries.items())}}}".encode()


def check_sentence(text: str) -> None:
    """Whether it can stand in any log, in one line."""
    assert text.isprintable()


lines = st.one_of(
    st.binary(max_size=200),
    deep.map(str.encode),
    values.map(str.encode),
    st.dictionaries(st.sampled_from(NAMES), values).map(line),
    values.map(lambda value: line({"seq": "1", "ok": "false", "error": value})),
    values.map(lambda value: line({"version": "2", "challenge": value})),
)


@given(lines)
def test_any_line_is_a_greeting_or_refused(text: bytes) -> None:
    """A challenge is a text that can be signed; the reason of a refusal fits into a log line."""
    try:
        challenge: Any = read_greeting(text)
    except CommPortError as error:
        check_sentence(str(error))
    else:
        assert len(challenge.encode("ascii")) >= 32


@given(lines, st.integers(1, 3))
def test_any_line_is_an_answer_or_refused(text: bytes, sequence: int) -> None:
    """So is an answer: it says that the command was carried out, or why it was not."""
    try:
        reason = read_answer(text, sequence)
    except CommPortError as error:
        check_sentence(str(error))
    else:
        assert reason.isprintable()
        assert len(reason) <= 200
        with suppress(ValueError, RecursionError):
            assert (json.loads(text).get("ok") is True) == (not reason)

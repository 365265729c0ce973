"""What targets make their inputs of."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

# Text as Python's JSON decoder makes it: surrogates may stand alone.
text = st.text(st.characters(exclude_categories=()), max_size=60)
numbers = st.one_of(
    st.integers(-2, 70_000), st.integers(), st.floats(), st.sampled_from([0, 1, -1, 2**31, 2**64, 10**400, 1e308])
)
scalars = st.one_of(st.none(), st.booleans(), numbers, text)


def json_values(
    keys: st.SearchStrategy[str] = text, leaves: st.SearchStrategy[Any] = scalars
) -> st.SearchStrategy[Any]:
    """Return values that Python's ``json`` can decode, with ``keys`` in their objects."""
    return st.recursive(
        leaves,
        lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(keys, inner, max_size=6)),
        max_leaves=20,
    )


def objects_like(**entries: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Return objects with some of ``entries``, some of them of a wrong type, and some that nobody has asked for."""
    spoiled = {name: st.one_of(entry, entry, json_values()) for name, entry in entries.items()}
    known = st.fixed_dictionaries({}, optional=spoiled)
    unknown = st.dictionaries(text, scalars, max_size=2)
    return st.builds(lambda more, some: {**more, **some}, unknown, known)


# Nesting that no decoder of Python's follows to its end.
deep = st.builds(
    lambda opened, times: opened * times, st.sampled_from(["[", '{"a":', "[[{}],"]), st.integers(1, 50_000)
)


def encoded(values: st.SearchStrategy[Any]) -> st.SearchStrategy[bytes]:
    """Return the JSON text of ``values``, now and then cut short, spoiled, nested too deeply, or no JSON at all."""
    whole = st.builds(lambda value: json.dumps(value).encode(), values)
    return st.one_of(
        whole,
        st.builds(lambda value: json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass"), values),
        st.builds(lambda content, place: content[: place % (len(content) + 1)], whole, st.integers(0)),
        st.builds(_replaced, whole, st.integers(0), st.binary(max_size=4)),
        st.builds(str.encode, deep),
        st.binary(max_size=200),
    )


def _replaced(content: bytes, place: int, piece: bytes) -> bytes:
    place %= len(content) + 1
    return content[:place] + piece + content[place + len(piece) :]

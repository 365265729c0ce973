"""Any text where a request has a URL, a host or an origin."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

from hypothesis import given
from hypothesis import strategies as st
from tornado.escape import parse_qs_bytes

from enterprise_gateway.base.handlers import hostname, is_allowed_host, origin_host
from enterprise_gateway.base.mixins import redacted_uri

SECRET = "s3cr3t-t0ken+and/more=&more~"

header_text = st.text(st.characters(max_codepoint=0xFF), max_size=200)  # as tornado decodes headers and request lines


def escaped(text: str) -> st.SearchStrategy[str]:
    """Write each character of ``text`` as it is, where that is possible, or percent-encoded in either case."""

    def forms(char: str) -> list[str]:
        code = f"%{ord(char):02x}"
        return [code, code.upper(), *([char] if quote(char, safe="~") == char else [])]

    return st.tuples(*(st.sampled_from(forms(char)) for char in text)).map("".join)


def redacted(uri: str) -> str:
    """Return what the log shows of a request for ``uri``."""
    request: Any = SimpleNamespace(uri=uri)
    return redacted_uri(request)


@given(header_text, header_text, escaped("token"), escaped(SECRET), header_text)
def test_what_authenticates_is_masked(path: str, before: str, name: str, value: str, after: str) -> None:
    """However name and value are encoded, and whatever stands around them."""
    uri = f"{path}?{before}&{name}={value}&{after}"
    _, _, query = uri.partition("?")
    assert SECRET.encode() in parse_qs_bytes(query, keep_blank_values=True).get("token", []), "tornado takes it"
    assert value not in redacted(uri)
    assert "token" in parse_qs_bytes(redacted(uri).partition("?")[2], keep_blank_values=True)


@given(header_text)
def test_a_url_is_one_line_of_the_log(uri: str) -> None:
    """And nothing in it but a token's value is hidden."""
    assert redacted(uri).isprintable()
    if "token" not in uri.lower() and "%" not in uri:
        assert redacted(uri) == "".join(char if char.isprintable() else repr(char)[1:-1] for char in uri)


@given(st.text() | header_text | st.from_regex(r"\A(\[[0-9a-f:.%]*\]?|[a-zA-Z0-9.-]*)(:[0-9]*)*\Z"))
def test_any_host_is_allowed_or_not(host: str) -> None:
    """Without a failure; and where all are, only those are not that are no Host header."""
    assert is_allowed_host(host, ()) in {True, False}
    assert is_allowed_host(host, ["*"]) or not hostname(host).removesuffix(".")


@given(st.from_regex(r"\A[a-zA-Z0-9-]{1,20}(\.[a-zA-Z0-9-]{1,20})*\.evil\.example\.?(:[0-9]{1,5})?\Z"))
def test_a_foreign_name_is_not_allowed(host: str) -> None:
    """Whatever it begins with."""
    assert not is_allowed_host(host, ["example", "localhost", ".good.example", "evil.example"])


@given(
    st.text()
    | header_text
    | st.builds("http://{}{}".format, st.sampled_from(["[", "]", "[::", "//", "@"]), header_text)
)
def test_any_origin_is_one_or_none(origin: str) -> None:
    """Without a failure."""
    host = origin_host(origin)
    assert host is None or isinstance(host, str)

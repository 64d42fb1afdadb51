from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlrm_factory.errors import LimitError, RequestError
from dlrm_factory.requests.request import Request, read_bytes, read_object


def read_body(raw: Any, max_body_bytes: int) -> dict[str, Any]:
    return read_object(read_bytes(Request(raw), max_body_bytes))


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b"{", "is not JSON"),
        (b"{}{}", "is not JSON"),
        (b"{'a': 1}", "is not JSON"),
        (b'{"a": NaN}', 'near "NaN}"'),
        (b'{"a": Infinity}', 'near "Infinity}"'),
        (b'{"a": 1,}', "is not JSON"),
        (b'{"a": 01}', "is not JSON"),
        (b"\x00", "is not JSON"),
        (b"{} \n\x00", "is not JSON"),
        (b'{"a": "\x00"}', "is not JSON"),
        (b"\xef\xbb\xbf{}", "byte order mark"),
        ('{"a": 1}'.encode("utf-16"), "UTF-16"),
        ('{"a": 1}'.encode("utf-16-le"), "UTF-16"),
        ('{"a": 1}'.encode("utf-32-be"), "UTF-32"),
        (b'{"a": "\xff"}', "is not UTF-8"),
        (b'{"a": "\xed\xa0\x80"}', "is not UTF-8"),
        (b'{"a": "\\ud800"}', "half a surrogate pair"),
        (b'{"a": "\\ud800\\n"}', "half a surrogate pair"),
        (b'{"a": 1e999}', "out of range"),
        (b'{"a": -1e999}', "out of range"),
        pytest.param(b'{"a": ' + b"9" * 5000 + b"}", "out of range", id="5000 digits"),
        pytest.param(b"[" * 100_000, "nested too deeply", id="brackets"),
        pytest.param(b'{"a":' * 100_000, "nested too deeply", id="braces"),
        (b"null", "the body is null"),
        (b'"{}"', 'the body is "{}"'),
        (b"[1]", "a list of 1"),
    ],
)
def test_what_is_no_json_object(raw: bytes, said: str) -> None:
    with pytest.raises(RequestError) as caught:
        read_body(raw, 10_000_000)
    assert said in caught.value.message
    assert (caught.value.code, caught.value.path) == (400, "$")


@pytest.mark.parametrize("compress", ["gzip", "zlib", "bz2"])
def test_a_compressed_body(compress: str) -> None:
    raw = __import__(compress).compress(b'{"instances": [{"price": 1.5}]}')
    with pytest.raises(
        RequestError, match="compressed with gzip" if compress == "gzip" else "the body is not"
    ):
        read_body(raw, 1000)


@pytest.mark.parametrize("body", [b" " * 11, bytearray(11)])
def test_a_body_over_the_limit(body: Any) -> None:
    with pytest.raises(LimitError, match=r"over max_body_bytes 10;") as caught:
        read_body(body, 10)
    assert caught.value.code == 413


def test_an_object_that_is_decoded_already() -> None:
    assert read_body({"a": 1}, 10) == {"a": 1}


def test_a_request_without_a_body_is_its_mistake() -> None:
    with pytest.raises(RequestError, match="there is no body") as caught:
        read_bytes(Request(mistake=RequestError("there is no body")), 10)
    assert caught.value.code == 400


def test_a_body_at_the_limit() -> None:
    assert read_body(b'{"a": 123}', 10) == {"a": 123}


@given(st.integers())
def test_integers_are_exact(number: int) -> None:
    assert read_body(b'{"a": %d}' % number, 1000) == {"a": number}

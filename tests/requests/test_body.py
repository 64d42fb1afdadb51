from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlrm_factory.errors import LimitError, RequestError
from dlrm_factory.requests.body import read_body

OBJECT = {"instances": [{"user_id": "a=b&c é", "price": 1.5}]}
TEXT = json.dumps(OBJECT, ensure_ascii=False)


def form(text: str) -> dict[str, bytearray]:
    """What TorchServe makes of a form that it keeps whole (without its percent-decoding)."""
    parts = (part.partition("=") for part in text.split("&"))
    return {key: bytearray(value.encode()) for key, _, value in parts}


@pytest.mark.parametrize(
    "request_",
    [
        {"body": TEXT.encode()},
        {"body": bytearray(TEXT.encode())},
        {"data": TEXT.encode()},
        {"body": TEXT},
        {"body": OBJECT},
        {"note": b"1", "body": TEXT.encode()},
        {TEXT: bytearray()},
        {TEXT: ""},
        form(TEXT),
        {"note": bytearray(b"1"), **form(TEXT)},
    ],
)
def test_every_way_that_torchserve_hands_a_body_over(request_: dict[str, Any]) -> None:
    assert read_body(request_, 1000) == OBJECT


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
        read_body({"body": raw}, 10_000_000)
    assert said in caught.value.message
    assert (caught.value.code, caught.value.path) == (400, "$")


@pytest.mark.parametrize(
    "request_", [{}, {"note": b"1"}, {"": b""}, {'{"a": "b': b""}, {'{"a": "b': b"\xff"}, {'{"\ud800': b""}]
)
def test_no_body(request_: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match="no body"):
        read_body(request_, 1000)


FORM = {"content-type": "application/x-www-form-urlencoded"}


@pytest.mark.parametrize(
    ("headers", "said"),
    [
        ({"Content-Type": "application/x-www-form-urlencoded", "Content-Length": "25"}, "was sent as a form"),
        ({"content-type": "APPLICATION/X-WWW-FORM-URLENCODED; charset=utf-8"}, "was sent as a form"),
        ({**FORM, "content-length": "0"}, "there is no body;"),
        ({"Content-Type": "application/json"}, "or it was sent as a form"),
        ({}, "or it was sent as a form"),
    ],
)
def test_a_form_of_which_nothing_is_left_says_what_to_do(headers: dict[str, str], said: str) -> None:
    with pytest.raises(RequestError) as caught:
        read_body({}, 1000, headers)
    assert said in caught.value.message
    assert "POST a JSON object with Content-Type: application/json" in caught.value.message
    assert caught.value.code == 400


def test_a_form_that_is_whole_but_no_object() -> None:
    with pytest.raises(RequestError, match="sent as a form"):
        read_body({'{"a": 1, "a"': bytearray(b"2}")}, 1000, FORM)
    assert read_body({'{"a": 1, "a": 2}': bytearray()}, 1000, FORM) == {"a": 2}
    with pytest.raises(LimitError):
        read_body({TEXT: bytearray()}, 10, FORM)


@pytest.mark.parametrize("compress", ["gzip", "zlib", "bz2"])
def test_a_compressed_body(compress: str) -> None:
    raw = __import__(compress).compress(TEXT.encode())
    with pytest.raises(
        RequestError, match="compressed with gzip" if compress == "gzip" else "the body is not"
    ):
        read_body({"body": raw}, 1000, {"Content-Encoding": compress})


def test_text_with_half_a_surrogate_pair() -> None:
    with pytest.raises(RequestError, match="surrogate"):
        read_body({"body": '{"a": "\ud800"}'}, 1000)


@pytest.mark.parametrize("body", [b" " * 11, bytearray(11), " " * 11, "é" * 6])
def test_a_body_over_the_limit(body: Any) -> None:
    with pytest.raises(LimitError, match=r"over max_body_bytes 10;") as caught:
        read_body({"body": body}, 10)
    assert caught.value.code == 413


def test_a_body_at_the_limit() -> None:
    assert read_body({"body": b'{"a": 123}'}, 10) == {"a": 123}


@given(st.integers())
def test_integers_are_exact(number: int) -> None:
    assert read_body({"body": b'{"a": %d}' % number}, 1000) == {"a": number}

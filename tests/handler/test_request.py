"""Requests as TorchServe hands them over → what was sent, and what is asked."""

from __future__ import annotations

import json
from typing import Any

import pytest

from dlrm_factory.errors import LimitError, RequestError
from dlrm_factory.requests.request import Ask, read_bytes, read_object
from handler.request import REQUEST_ID, read_request, request_id_of


def read_body(sent: dict[str, Any], max_body_bytes: int, headers: Any = None) -> dict[str, Any]:
    return read_object(read_bytes(read_request(sent, headers or {}), max_body_bytes))


@pytest.mark.parametrize(
    ("headers", "ask", "error_key"),
    [
        ({}, Ask.SCORES, False),
        ({"explain": "False", "describe": "False", "url_path": ""}, Ask.SCORES, False),
        ({"explain": "False", "describe": "False"}, Ask.SCORES, True),
        ({"explain": "True", "url_path": ""}, Ask.EXPLANATION, False),
        ({"explain": "True"}, Ask.EXPLANATION, True),
        ({"explain": {"content-type": "text/plain"}, "url_path": ""}, Ask.SCORES, False),
        ({"describe": "True"}, Ask.SCORES, False),
    ],
)
def test_what_is_asked(headers: dict[str, Any], ask: Ask, error_key: bool) -> None:
    found = read_request({"body": b"{}"}, headers)
    assert (found.body, found.headers, found.mistake) == (b"{}", headers, None)
    assert (found.ask, found.error_key) == (ask, error_key)


def test_a_question_for_the_description_has_no_body() -> None:
    found = read_request({}, {"describe": "True", "explain": "False"})
    assert (found.ask, found.mistake) == (Ask.DESCRIPTION, None)
    assert read_request({}, {"describe": "False"}).mistake is not None


OBJECT = {"instances": [{"user_id": "a=b&c é", "price": 1.5}]}
TEXT = json.dumps(OBJECT, ensure_ascii=False)


def form(text: str) -> dict[str, bytearray]:
    """Parts that TorchServe makes of a form that it keeps whole (without its percent-decoding)."""
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


def test_text_with_half_a_surrogate_pair() -> None:
    with pytest.raises(RequestError, match="surrogate"):
        read_body({"body": '{"a": "\ud800"}'}, 1000)


@pytest.mark.parametrize("text", [" " * 11, "é" * 6])
def test_text_over_the_limit(text: str) -> None:
    with pytest.raises(LimitError, match=r"over max_body_bytes 10;"):
        read_body({"body": text}, 10)


@pytest.mark.parametrize("name", [REQUEST_ID, "X-Dlrm-Request-Id", "X-DLRM-Request-Id"])
def test_an_id_comes_back_as_it_is(name: str) -> None:
    assert request_id_of({"Host": "a", name: "7f-3/b~!"}) == "7f-3/b~!"
    assert request_id_of({name: "x" * 128}) == "x" * 128


@pytest.mark.parametrize(
    "value", ["", "x" * 129, "a b", "a\r\nX: y", "a\n", "\xe9", "\x00", {"content-type": "a"}]
)
def test_what_is_no_id_is_left_out(value: object) -> None:
    assert request_id_of({REQUEST_ID: value}) is None
    assert request_id_of({}) is None

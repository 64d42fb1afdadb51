"""A client's request id comes back, if it is one that a header may hold."""

from __future__ import annotations

import pytest

from handler.request_id import REQUEST_ID, request_id_of


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

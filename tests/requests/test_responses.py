from __future__ import annotations

import json

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlrm_factory.errors import RequestError
from dlrm_factory.requests.answers import answer_error, answer_json, shortest
from dlrm_factory.requests.formats.mistakes import element, member

FLOAT32 = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(st.lists(st.one_of(FLOAT32, st.floats(0, 1, width=32))), st.sampled_from([1, 100]))
def test_scores_read_back_exactly_and_are_short(raw: list[float], times: int) -> None:
    scores = np.array(raw * times, dtype=np.float32)
    text = [msgspec.json.encode(number).decode() for number in shortest(scores)]
    np.testing.assert_array_equal(np.array([float(t) for t in text], dtype=np.float32), scores)
    for t, score in zip(text, scores, strict=True):
        assert digits(t) <= digits(str(score))


def digits(number: str) -> int:
    return len(number.lower().split("e")[0].strip("-0.").replace(".", "").strip("0"))


def test_shortest_is_what_people_expect() -> None:
    raw = [0.1, 0.0321, 1.0, 0.0, 1e-20, 123456.78, 16777216.0, 3.4028235e38, -0.5]
    numbers = [*raw[:5], 123456.78, *raw[6:]]
    assert shortest(np.array(raw, dtype=np.float32)) == numbers
    assert shortest(np.array(raw * 20, dtype=np.float32)) == numbers * 20


def test_json() -> None:
    answer = answer_json({"predictions": [0.5, 1.0]})
    assert (answer.status, answer.body) == (200, b'{"predictions":[0.5,1.0]}')


def test_errors_survive_any_text() -> None:
    answer = answer_error(RequestError("half \ud800", "$"))
    assert answer.status == 400
    assert json.loads(answer.body)["message"] == "half \ud800"
    assert answer.body.isascii()


@pytest.mark.parametrize(
    ("key", "path"),
    [
        ("user_id", "$.user_id"),
        ("item-tags", '$["item-tags"]'),
        ('a"b', '$["a\\"b"]'),
        ("é", '$["\\u00e9"]'),
        ("", '$[""]'),
        ("x" * 200, '$["' + "x" * 100 + '"]'),
    ],
)
def test_member(key: str, path: str) -> None:
    assert member("$", key) == path


def test_element() -> None:
    assert element("$.a", 3, 0) == "$.a[3][0]"
    assert element("$.a", 3, None) == "$.a[3]"

from __future__ import annotations

import json

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlrm_factory.errors import RequestError
from dlrm_factory.requests.answers import answer_error, answer_json
from dlrm_factory.requests.formats.mistakes import element, member
from dlrm_factory.requests.numbers import answered_probabilities, answered_scores, shortest

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


@given(st.lists(st.floats(-60, 60, width=32)))
def test_probabilities_near_1_are_as_exact_as_those_near_0(raw: list[float]) -> None:
    logits = np.array(raw, dtype=np.float32)
    answered = answered_probabilities(logits)
    exact = 1 / (1 + np.exp(-logits.astype(np.longdouble)))
    np.testing.assert_allclose(answered, exact.astype(float), rtol=5.1e-9)
    # 1.2e-16 is float64's own spacing below 1.
    np.testing.assert_allclose(1 - answered, (1 - exact).astype(float), rtol=5.1e-9, atol=1.2e-16)
    assert (np.diff(answered[np.argsort(logits)]) >= 0).all()


def test_a_probability_is_the_same_alone_and_among_many_and_short() -> None:
    logits = np.float32([*np.random.default_rng(0).normal(0, 9, 5000), *np.log([1e-6, 1e6, 999, 1e-3, 9])])
    alone = [float(answered_probabilities(logits[i : i + 1])[0]) for i in range(len(logits))]
    assert answered_probabilities(logits).tolist() == alone
    assert answered_probabilities(np.tile(logits, 14)).tolist() == alone * 14
    assert all(digits(repr(number)) <= 9 for logit, number in zip(logits, alone, strict=True) if logit < 0)
    assert all(len(repr(number)) <= 12 for logit, number in zip(logits, alone, strict=True) if -2 < logit < 4)
    assert all(len(repr(number)) <= 18 for number in alone if number > 0.5)


def test_probabilities_are_what_people_expect() -> None:
    logits = np.float32([0, 2.1, -1.5, 15, 37, 100, np.inf, -100, -800, -np.inf])
    numbers = [
        0.5,
        0.89090317,
        0.182425524,
        0.999999694097773,
        0.9999999999999999,
        1,
        1,
        3.72007598e-44,
        0,
        0,
    ]
    assert answered_probabilities(logits).tolist() == numbers
    assert answered_scores(logits[:3], np.array([False, True, False])) == [0.5, 2.1, 0.182425524]


@pytest.mark.parametrize(
    ("first", "last"), [(0.1, 0.101), (15.9, 16), (21.9, 22), (-0.101, -0.1), (-103, -102.9)]
)
def test_different_logits_have_different_probabilities(first: float, last: float) -> None:
    logits = np.arange(first, last, np.spacing(np.float32(abs(last))), dtype=np.float32)
    assert len(np.unique(logits)) > 1000
    assert len(np.unique(answered_probabilities(logits))) == len(np.unique(logits))


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

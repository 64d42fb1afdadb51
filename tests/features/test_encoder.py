from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlrm_factory.config import tiny
from dlrm_factory.features import FeatureEncoder, FeatureError, hash_ids, shown

DECLARATION = tiny()  # user_id: hash of 1000; item_id: index of 200; item_tags: index of 50, at most 8
ENCODER = FeatureEncoder(DECLARATION)

USER_ID = st.one_of(st.integers(-(2**63), 2**63 - 1), st.text(st.characters(exclude_categories=["Cs"])))


def bag(ids: st.SearchStrategy[Any], most: int) -> st.SearchStrategy[Any]:
    return st.one_of(st.none(), ids, st.lists(ids, max_size=most))


SAMPLE = st.fixed_dictionaries(
    {
        "user_id": bag(USER_ID, 20),
        "item_id": bag(st.integers(0, 199), 3),
        "item_tags": bag(st.integers(0, 49), 8),
    }
)


def rows_of(value: Any, feature: str) -> list[int]:
    """The bag of one raw value, spelt out."""
    raw = [] if value is None else value if isinstance(value, list) else [value]
    return hash_ids(raw, 1000).tolist() if feature == "user_id" else raw


def columns_of(samples: list[dict[str, Any]]) -> dict[str, list[Any]]:
    return {name: [sample[name] for sample in samples] for name in DECLARATION.sparse_names}


@given(st.lists(SAMPLE, max_size=6))
def test_every_id_lands_in_its_bag(samples: list[dict[str, Any]]) -> None:
    batch = ENCODER.encode(columns_of(samples), len(samples))
    expected = [[rows_of(sample[name], name) for sample in samples] for name in DECLARATION.sparse_names]
    assert batch.values.dtype == np.int64
    assert batch.lengths.dtype == np.int32
    assert batch.lengths.tolist() == [[len(ids) for ids in bags] for bags in expected]
    assert batch.values.tolist() == [row for bags in expected for ids in bags for row in ids]


@given(st.lists(SAMPLE, min_size=1, max_size=1))
def test_flat_bags_are_the_same(samples: list[dict[str, Any]]) -> None:
    raw = [
        [] if value is None else value if isinstance(value, list) else [value]
        for value in (samples[0][name] for name in DECLARATION.sparse_names)
    ]
    lengths = np.array([[len(ids)] for ids in raw], dtype=np.int32)
    flat = ENCODER.encode_jagged({"price": [1.5]}, lengths, [value for ids in raw for value in ids])
    named = ENCODER.encode({"price": [1.5], **columns_of(samples)}, 1)
    for field in ("dense", "lengths", "values"):
        assert getattr(flat, field).tobytes() == getattr(named, field).tobytes()


def test_absent_columns_are_empty_bags() -> None:
    batch = ENCODER.encode({"item_id": [7]}, 1)
    assert batch.lengths.tolist() == [[0], [1], [0]]
    assert batch.values.tolist() == [7]
    assert batch.dense.tolist() == [[0.0, np.float32(np.log(31))]]


def test_ids_beyond_float32_and_float64_stay_exact() -> None:
    one, other = ENCODER.encode({"user_id": [2**53, 2**53 + 1]}, 2).values
    assert one != other
    assert other == hash_ids([2**53 + 1], 1000)[0]


@pytest.mark.parametrize(
    ("feature", "value", "position", "said"),
    [
        ("item_id", 200, 0, "id 200 is out of range [0, 200)"),
        ("item_id", -1, 0, "id -1 is out of range [0, 200)"),
        ("item_id", 2**64, 0, "out of range [0, 200)"),
        pytest.param("item_id", 10**5000, 0, "id an integer of about 5000 digits is out of range", id="huge"),
        ("item_tags", [1, 2, 50], 2, "id 50 is out of range [0, 50)"),
        ("item_id", "7", 0, "declare ids: hash"),
        ("item_id", 7.0, 0, "id 7.0 is a floating-point number"),
        ("item_id", True, 0, "id true is a boolean"),
        ("item_tags", [1, None], 1, "null is not an id"),
        ("item_tags", [[1]], 0, "a list of 1 is not an id"),
        ("item_tags", {"ids": [1]}, 0, "an object is not an id"),
        ("item_tags", [1] * 9, None, "9 ids in one bag is over max_length 8"),
        ("user_id", 2**63, 0, "out of int64's range"),
        ("user_id", ["a", -(2**63) - 1], 1, "send it as a string"),
        ("user_id", 1.5, 0, "send an integer or a string"),
        ("user_id", False, 0, "id false is a boolean"),
        ("user_id", "\ud800", 0, "not valid Unicode"),
    ],
)
def test_wrong_ids_are_named(feature: str, value: Any, position: int | None, said: str) -> None:
    columns = {"user_id": ["u", 2, None, "u"], "item_id": [1, [2], None, 3], "item_tags": [[1], [], None, 4]}
    columns[feature][2] = value
    with pytest.raises(FeatureError) as caught:
        ENCODER.encode(columns, 4)
    assert caught.value.message.startswith(f'sparse feature "{feature}": ')
    assert said in caught.value.message
    assert (caught.value.feature, caught.value.sample, caught.value.position) == (feature, 2, position)


def test_shown_is_short_ascii_safe_json() -> None:
    assert shown("x" * 100) == '"' + "x" * 60 + '..."'
    assert shown("\ud800é") == '"\\ud800\\u00e9"'
    assert shown('q"é') == '"q\\"é"'
    assert shown(float("inf")) == "Infinity"

"""Policies for unknown ids, weights and long bags."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlrm_factory.batch import FeatureBatch
from dlrm_factory.config import SparseFeature, Table, tiny
from dlrm_factory.config.checks import problems_of
from dlrm_factory.errors import WeightsError
from dlrm_factory.features import FeatureEncoder, FeatureError, build_vocabularies, hash_keys

KNOWN = ["a", 7, "b", 2**60]
DECLARATION = msgspec.structs.replace(
    tiny(),
    sparse_features=[
        SparseFeature(name="strict", table="t", ids="vocabulary", out_of_vocabulary="error"),
        SparseFeature(name="dropped", table="t", ids="vocabulary", out_of_vocabulary="drop", weighted=True),
        SparseFeature(name="spare", table="t", ids="vocabulary", out_of_vocabulary=3),
        SparseFeature(name="short", table="t_short", max_length=2, over_max_length="truncate", weighted=True),
        SparseFeature(name="hashed", table="t_hashed", ids="hash"),
    ],
    tables=[
        Table(name="t", num_embeddings=10, embedding_dim=8),
        Table(name="t_short", num_embeddings=50, embedding_dim=8),
        Table(name="t_hashed", num_embeddings=20, embedding_dim=8, pooling="mean"),
    ],
)
ENCODER = FeatureEncoder(DECLARATION, build_vocabularies({"t": KNOWN}))


def encoded(
    feature: str, bags: list[Any], **columns: Any
) -> tuple[list[list[int]], list[list[float]] | None]:
    """Rows and weights of each bag of ``feature``."""
    batch = ENCODER.encode({feature: bags, **columns}, len(bags))
    f = DECLARATION.sparse_names.index(feature)
    first = int(batch.lengths[:f].sum())
    ends = first + np.cumsum([0, *batch.lengths[f]])
    spans = list(pairwise(ends))
    weights = None
    if batch.weights is not None:
        assert batch.weights.dtype == np.float32
        assert len(batch.weights) == len(batch.values)
        weights = [batch.weights[start:stop].tolist() for start, stop in spans]
    return [batch.values[start:stop].tolist() for start, stop in spans], weights


def test_the_declaration_is_allowed() -> None:
    assert problems_of(DECLARATION) == []
    assert DECLARATION.vocabulary_room("t") == 7


def test_known_ids_have_the_rows_of_their_order() -> None:
    for feature in ("strict", "dropped", "spare"):
        rows, _ = encoded(feature, ["a", [2**60, "7"], None, []])
        assert rows == [[0], [3, 1], [], []]


def test_an_unknown_id_is_an_error_by_name() -> None:
    with pytest.raises(FeatureError, match='id "z" is not in the vocabulary of table "t"') as caught:
        encoded("strict", ["a", ["b", "z"]], spare=["z", "z"], hashed=["x", 1])
    assert (caught.value.feature, caught.value.sample, caught.value.position) == ("strict", 1, 1)


def test_every_mistake_of_a_vocabulary_feature_is_listed() -> None:
    columns = {"strict": ["a", ["z", 1.5, "y"], 2**63], "dropped": ["z", True, None]}
    found = [(mistake.feature, mistake.sample, mistake.position) for mistake in ENCODER.mistakes(columns, 3)]
    assert found == [
        ("strict", 1, 0),
        ("strict", 1, 1),
        ("strict", 1, 2),
        ("strict", 2, 0),
        ("dropped", 1, 0),
    ]


def test_an_unknown_id_is_left_out_with_its_weight() -> None:
    bags = [["z", "a", "y", "b"], {"ids": ["z", 7, "b"], "weights": [5, 0.5, -2]}, "z", {"ids": ["a"]}]
    rows, weights = encoded("dropped", bags)
    assert rows == [[0, 2], [1, 2], [], [0]]
    assert weights == [[1, 1], [0.5, -2], [], [1]]


@given(
    st.lists(st.one_of(st.integers(-(2**63), 2**63 - 1), st.text(st.characters(exclude_categories=["Cs"]))))
)
def test_an_unknown_id_goes_to_one_of_the_spare_rows(ids: list[int | str]) -> None:
    (rows,), _ = encoded("spare", [ids])
    where: dict[int | str, int] = {"a": 0, 7: 1, "7": 1, "b": 2, 2**60: 3, str(2**60): 3}
    for raw, row in zip(ids, rows, strict=True):
        assert row == where.get(raw, 7 + int(hash_keys([raw])[0] % np.uint64(3)))


def test_a_long_bag_is_cut_to_its_first_ids() -> None:
    rows, weights = encoded("short", [[1, 2, 3, 4], {"ids": [5, 6, 7], "weights": [1, 2, 3]}, [8], None])
    assert rows == [[1, 2], [5, 6], [8], []]
    assert weights == [[1, 1], [1, 2], [1], []]


def test_ids_that_are_cut_off_are_checked_too() -> None:
    with pytest.raises(FeatureError, match="out of range") as caught:
        encoded("short", [[1, 2, 50]])
    assert caught.value.position == 2


def test_a_cut_bag_changes_no_other() -> None:
    alone = ENCODER.encode({"hashed": ["x"], "strict": ["b"]}, 1)
    beside = ENCODER.encode({"hashed": [[], "x"], "strict": [None, "b"], "short": [[1, 2, 3], None]}, 2)
    assert beside.lengths.tolist() == [[0, 1], [0, 0], [0, 0], [2, 0], [0, 1]]
    assert beside.values.tolist() == [alone.values[0], 1, 2, alone.values[1]]


@pytest.mark.parametrize(
    ("bag", "part", "position", "said"),
    [
        ({"ids": [1, 2], "weights": [1]}, None, 0, "2 ids have 1 weights; send one weight for each id"),
        ({"ids": 1, "weights": [1]}, None, 0, '"ids" is 1; send'),
        ({"weights": [1]}, None, 0, '"ids" is missing'),
        ({"ids": [1], "weights": 2}, None, 0, '"weights" is 2; send a list'),
        ({"ids": [1], "weight": [2]}, None, 0, '"weight" does not belong'),
        ({"ids": [1, 50], "weights": [1, 1]}, "ids", 1, "id 50 is out of range"),
        ({"ids": [1, 2], "weights": [1, "2"]}, "weights", 1, 'weight "2" is a string; send a number'),
        ({"ids": [1], "weights": [True]}, "weights", 0, "weight true is a boolean"),
        ({"ids": [1], "weights": [None]}, "weights", 0, "weight null is not a number"),
        ({"ids": [1], "weights": [float("nan")]}, "weights", 0, "weight NaN is not a finite number"),
        ({"ids": [1], "weights": [1e39]}, "weights", 0, "out of float32's range"),
        ({"ids": [1], "weights": [10**400]}, "weights", 0, "out of float32's range"),
        ([{"ids": [1]}], None, 0, "an object is not an id"),
    ],
)
def test_a_wrong_weighted_bag_is_named(bag: Any, part: str | None, position: int, said: str) -> None:
    with pytest.raises(FeatureError) as caught:
        encoded("short", [[1], {"ids": [3], "weights": [2.5]}, bag])
    assert said in caught.value.message
    assert (caught.value.feature, caught.value.sample) == ("short", 2)
    assert (caught.value.part, caught.value.position) == (part, position)


def test_weights_of_a_feature_without_are_refused() -> None:
    with pytest.raises(FeatureError, match="takes no weights; send a list of ids, or declare weighted: true"):
        encoded("hashed", [{"ids": [1], "weights": [2]}])


def test_weights_that_are_not_sent_are_not_made() -> None:
    assert ENCODER.encode({"dropped": ["a"], "short": [[1]]}, 1).weights is None


def test_flat_bags_go_through_the_same_policies() -> None:
    lengths = np.array([[1], [2], [1], [3], [0]], dtype=np.int32)
    batch = ENCODER.encode_jagged({}, lengths, ["a", "z", "b", "z", 1, 2, 3])
    assert batch.lengths.tolist() == [[1], [1], [1], [2], [0]]
    assert batch.values[[0, 1, 3, 4]].tolist() == [0, 2, 1, 2]


def test_a_vocabulary_must_be_given() -> None:
    with pytest.raises(WeightsError, match='table "t" needs the vocabulary of its ids'):
        FeatureEncoder(DECLARATION)


NOT_A_ROW = st.one_of(st.integers(max_value=-1), st.integers(min_value=200))


@given(NOT_A_ROW, st.lists(st.integers(0, 199), max_size=3), st.integers(0, 3))
def test_what_the_kernels_would_swallow_is_refused_by_name(wrong: int, others: list[int], place: int) -> None:
    bag = [*others[:place], wrong, *others[place:]]
    with pytest.raises(FeatureError, match='sparse feature "item_id"') as caught:
        FeatureEncoder(tiny()).encode({"item_id": [[0], bag]}, 2)
    assert (caught.value.sample, caught.value.position) == (1, min(place, len(others)))


ANY_ID = st.one_of(st.integers(-(2**64), 2**64), st.text(max_size=4), st.sampled_from(["a", "b", 7]))


@given(st.fixed_dictionaries({name: st.lists(ANY_ID, max_size=4) for name in DECLARATION.sparse_names}))
def test_what_is_accepted_lies_in_its_table(columns: dict[str, list[Any]]) -> None:
    try:
        batch = ENCODER.encode({name: [bag] for name, bag in columns.items()}, 1)
    except FeatureError:
        return
    sizes = [DECLARATION.table(feature.table).num_embeddings for feature in DECLARATION.sparse_features]
    limits = np.repeat(sizes, batch.lengths[:, 0])
    assert batch.in_range
    assert ((batch.values >= 0) & (batch.values < limits)).all()


def test_a_bag_that_loses_its_one_id_is_not_said_to_hold_one() -> None:
    """Lookups take the word of a batch that every bag holds one id."""
    ids = np.array([[7], [12345], [7], [7], [7]])  # of "dropped" unknown
    batch = ENCODER.encode_single_valued(np.zeros((2, 1)), ids)
    assert batch.lengths[:, 0].tolist() == [1, 0, 1, 1, 1]
    assert not batch.one_each
    plain = FeatureEncoder(tiny()).encode_single_valued(np.zeros((2, 1)), np.array([[1], [2], [3]]))
    assert plain.one_each


INDEXED = msgspec.structs.replace(
    tiny(),
    sparse_features=[SparseFeature(name=name, table=name) for name in ("small", "large")],
    tables=[
        Table(name="small", num_embeddings=10, embedding_dim=8),
        Table(name="large", num_embeddings=56, embedding_dim=8),
    ],
)


@pytest.mark.parametrize(
    "encoder", [ENCODER, FeatureEncoder(tiny()), FeatureEncoder(INDEXED)], ids=["vocabulary", "hash", "index"]
)
@given(data=st.data())
def test_ones_are_encoded_as_bags_are(encoder: FeatureEncoder, data: st.DataObject) -> None:
    names = encoder.declaration.sparse_names
    size = data.draw(st.integers(1, 4))
    # Of ids that few features refuse, and of the first that they do.
    cell = st.none() | st.sampled_from(data.draw(st.sampled_from([(0, 1, 7, 9), (0, 9, 10, 55, 56, -1)])))
    columns = {name: data.draw(st.lists(cell, min_size=size, max_size=size)) for name in names}
    ids = np.array([[value or 0 for value in columns[name]] for name in names])
    there = np.array([[value is not None for value in columns[name]] for name in names])
    dense = np.zeros((len(encoder.declaration.dense_features), size))
    wrong, expected = outcome(lambda: encoder.encode(columns, size))
    found_wrong, batch = outcome(
        lambda: encoder.encode_single_valued(dense, ids, None if there.all() else there)
    )
    assert found_wrong == wrong
    if batch is None or expected is None:
        return
    for field in ("lengths", "values"):
        found, wanted = getattr(batch, field), getattr(expected, field)
        assert found.dtype == wanted.dtype
        np.testing.assert_array_equal(found, wanted)
    assert not batch.one_each or (batch.lengths == 1).all()


def outcome(encode: Callable[[], FeatureBatch]) -> tuple[tuple[str, int | None] | None, FeatureBatch | None]:
    """Feature and sample that it finds wrong, else the batch."""
    try:
        return None, encode()
    except FeatureError as error:
        return (error.feature, error.sample), None

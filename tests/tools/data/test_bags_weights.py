from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from dlrm_factory.config import SparseFeature
from dlrm_factory.errors import DataError
from dlrm_factory.tools.data.bad_rows import Place
from dlrm_factory.tools.data.bags import encode_bag_weights, encode_bags

PLACE = Place(source="clicks.csv", first_row=11, column="seen")
LENGTHS = np.array([2, 0, 1, 1])


def weights_of(column: pa.Array) -> list[float]:
    return encode_bag_weights(column, LENGTHS, "|", PLACE).tolist()


@pytest.mark.parametrize(
    "column",
    [
        pa.array([[0.5, 2.0], [], None, [-1.0]]),
        pa.array([[0.5, 2.0], None, None, [-1.0]], pa.list_(pa.float32())),
        pa.array(["0.5|2", None, None, "-1"]),
        pa.array(["0.5|2", "", None, "-1.0"]),
    ],
)
def test_one_weight_an_id_and_null_for_all_ones(column: pa.Array) -> None:
    assert weights_of(column) == [0.5, 2.0, 1.0, -1.0]


def test_a_plain_column_is_one_weight_a_sample() -> None:
    column = pa.array([0.5, 2, None])
    assert encode_bag_weights(column, np.array([1, 1, 1]), "|", PLACE).tolist() == [0.5, 2, 1]


@pytest.mark.parametrize(
    ("column", "said"),
    [
        (pa.array(["1", None, None, None]), 'row 11, column "seen.weights": 2 ids have 1 weights'),
        (pa.array([[1.0, 1.0], [], [], [1.0]]), 'row 13, column "seen.weights": 1 ids have 0 weights'),
        (
            pa.array(["1|x", None, None, None]),
            'row 11, column "seen.weights": weight "x" is not a finite number',
        ),
        (pa.array([[1.0, 1.0], None, [1e39], None]), "row 13, .* is not a finite number"),
        (pa.array([[1.0, None], None, None, None]), "row 11, .* holds a null"),
        (pa.array([[True, False], None, None, None]), "holds bool; weights are numbers"),
    ],
)
def test_wrong_weights_name_their_row(column: pa.Array, said: str) -> None:
    with pytest.raises(DataError, match=said):
        weights_of(column)


def test_a_long_bag_is_cut_with_its_weights() -> None:
    feature = SparseFeature(name="seen", table="t", max_length=2, over_max_length="truncate", weighted=True)
    ids, weights = pa.array([[1, 2, 3], [4]]), pa.array([[0.1, 0.2, 0.3], [0.4]])
    bags = encode_bags(ids, feature, 10, "|", PLACE, weights=weights)
    assert (bags.values.tolist(), bags.lengths.tolist()) == ([1, 2, 4], [2, 1])
    assert bags.weights is not None
    np.testing.assert_allclose(bags.weights, [0.1, 0.2, 0.4], rtol=1e-6)

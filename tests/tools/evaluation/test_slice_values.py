from __future__ import annotations

import datetime

import numpy as np
import pyarrow as pa
import pytest

from dlrm_factory.tools.evaluation.slice_values import SliceValues


def cut(*chunks: pa.Array, is_id: bool = False, separator: str | None = None) -> dict[str, list[int]]:
    values = SliceValues(is_id=is_id, separator=separator)
    for chunk in chunks:
        values.add(chunk)
    return {each.name: each.rows.tolist() for each in values.slices()}


def test_few_texts_are_a_slice_each_the_most_frequent_first():
    found = cut(pa.array(["b", "a", None]), pa.array(["b", "c"]))
    assert found == {"b": [0, 3], "a": [1], "c": [4], "(missing)": [2]}
    assert list(found) == ["b", "a", "c", "(missing)"]


def test_few_numbers_are_a_slice_each_in_order():
    found = cut(pa.array([2.5, 1.0, None, 2.5, float("nan")]))
    assert found == {"1": [1], "2.5": [0, 3], "(missing)": [2, 4]}


def test_many_numbers_are_cut_into_bins_of_about_equally_many():
    found = cut(pa.array(range(100), pa.int64()))
    assert len(found) == 10
    assert found["0 to 9"] == list(range(10))
    assert found["90 to 99"] == list(range(90, 100))


def test_numbers_of_csv_are_numbers():
    assert next(iter(cut(pa.array([str(n) for n in range(100)])))) == "0 to 9"
    assert list(cut(pa.array(["10", "9", None]))) == ["9", "10", "(missing)"]


def test_bins_hold_equal_values_together():
    found = cut(pa.array([0] * 500 + list(range(1, 101)), pa.int64()))
    assert found["0 to 0"] == list(range(500))
    assert sum(map(len, found.values())) == 600


def test_ids_are_names_whatever_they_look_like():
    ids = [n for n in range(30) for _ in range(30 - n)]  # 0 is the most frequent
    for column in (pa.array(ids, pa.int64()), pa.array([str(n) for n in ids])):
        found = cut(column, is_id=True)
        assert list(found) == [str(n) for n in range(20)] + ["(other)"]
        assert len(found["(other)"]) == sum(range(1, 11))


def test_the_rest_of_many_texts_is_one_slice():
    found = cut(pa.array([f"v{n:02}" for n in range(25)] * 2))
    assert list(found)[:2] == ["v00", "v01"]
    assert found["(other)"] == [20, 21, 22, 23, 24, 45, 46, 47, 48, 49]


def test_a_sample_is_in_the_slice_of_each_of_its_ids_once():
    expected = {"3": [0, 2], "9": [0], "(missing)": [1, 3]}
    lists = pa.array([[3, 9, 3], [], [3], None], pa.list_(pa.int64()))
    assert cut(lists, is_id=True) == expected
    assert cut(pa.array(["3|9|3", "", "3", None]), is_id=True, separator="|") == expected
    many = pa.array([[n, n + 1] for n in range(40)], pa.list_(pa.int64()))
    assert len(set(cut(many, is_id=True)["(other)"])) == len(cut(many, is_id=True)["(other)"])


def test_a_part_of_a_list_column_is_read_as_such():
    lists = pa.array([["a"], ["b", "c"], ["a"]]).slice(1)
    assert cut(lists) == {"a": [1], "b": [0], "c": [0]}


def test_truth_values_dictionaries_and_days():
    assert cut(pa.array([True, False, True])) == {"True": [0, 2], "False": [1]}
    assert cut(pa.array(["x", None, "x"]).dictionary_encode()) == {"x": [0, 2], "(missing)": [1]}
    times = pa.array([datetime.datetime(2024, 5, 1, 8), datetime.datetime(2024, 5, 1, 23)])
    assert cut(times) == {"2024-05-01": [0, 1]}


def test_a_column_of_numbers_in_one_file_and_text_in_another():
    assert cut(pa.array([1, 2]), pa.array(["2", "3"])) == {"1": [0], "2": [1, 2], "3": [3]}
    assert cut(pa.array([1, 2]), pa.array(["2", "x"])) == {"2": [1, 2], "1": [0], "x": [3]}


def test_nothing_but_missing_values():
    assert cut(pa.nulls(2)) == {"(missing)": [0, 1]}
    assert cut(pa.array([], pa.string())) == {}


@pytest.mark.parametrize(
    "values", [pa.array(np.arange(1000) % 37), pa.array([f"t{n % 37}" for n in range(1000)])]
)
def test_every_sample_is_in_one_slice(values):
    rows = [row for rows in cut(values).values() for row in rows]
    assert sorted(rows) == list(range(1000))


@pytest.mark.parametrize(
    ("column", "kinds"),
    [
        (pa.array([1, 2, None]), {"value", "missing"}),
        (pa.array(range(100)), {"bin"}),
        (pa.array([f"w{n}" for n in range(21)]), {"value", "other"}),
        (pa.array(["(other)"]), {"value"}),
    ],
)
def test_a_slice_says_of_which_kind_it_is(column, kinds):
    values = SliceValues(is_id=False)
    values.add(column)
    assert {each.kind for each in values.slices()} == kinds

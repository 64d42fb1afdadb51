"""The hash is part of every trained model: these numbers must never change."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlrm_factory.features.ids import INT64_MAX, INT64_MIN, canonical_int, hash_ids, hash_int64, hash_keys

INT64 = st.integers(INT64_MIN, INT64_MAX)
TEXT = st.text(st.characters(exclude_categories=["Cs"]))


def test_integers_hash_by_splitmix64() -> None:
    # The first outputs of the published generator from seed 0: states are multiples of its increment.
    increment = 0x9E3779B97F4A7C15
    states = np.array([0, increment, 2 * increment % 2**64], dtype=np.uint64).view(np.int64)
    assert [hex(key) for key in hash_keys(states.tolist()).tolist()] == [
        "0xe220a8397b1dcdaf",
        "0x6e789e6aa1b965f4",
        "0x6c45d188009454f",
    ]


def test_text_hashes_by_xxh64() -> None:
    assert [hex(key) for key in hash_keys(["", "a", "abc"]).tolist()] == [
        "0xef46db3751d8e999",
        "0xd24ec4f1a98c6e5b",
        "0x44bc2cf5ad770999",
    ]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("0", 0),
        ("17", 17),
        ("-3", -3),
        ("9223372036854775807", INT64_MAX),
        ("-9223372036854775808", INT64_MIN),
        ("9223372036854775808", None),
        ("017", None),
        ("+3", None),
        ("-0", None),
        (" 3", None),
        ("3\n", None),
        ("٣", None),
        ("", None),
        ("-", None),
        ("1.0", None),
        ("9" * 5000, None),
    ],
)
def test_canonical_int(text: str, number: int | None) -> None:
    assert canonical_int(text) == number


@given(INT64, st.integers(1, 2**31 - 1))
def test_a_number_and_its_text_are_one_id(number: int, rows: int) -> None:
    as_number, as_text = hash_ids([number], rows), hash_ids([str(number)], rows)
    assert as_number == as_text
    assert as_number == hash_int64(np.array([number]), rows)
    assert 0 <= as_number[0] < rows


@given(st.lists(st.one_of(INT64, INT64.map(str), TEXT)), st.integers(1, 2**31 - 1))
def test_ids_hash_alone_as_in_company(ids: list[int | str], rows: int) -> None:
    together = hash_ids(ids, rows)
    assert together.dtype == np.int64
    assert together.tolist() == [int(hash_ids([raw], rows)[0]) for raw in ids]


def test_one_size_an_id() -> None:
    ids = np.array([5, 5, 5])
    rows = hash_int64(ids, np.array([3, 1000, 2**31 - 1]))
    assert rows.tolist() == [int(hash_int64(ids[:1], n)[0]) for n in (3, 1000, 2**31 - 1)]


def test_hashing_leaves_its_input_alone() -> None:
    ids = np.array([1, -1])
    hash_int64(ids, 10)
    assert ids.tolist() == [1, -1]


def test_ids_out_of_int64_do_not_wrap() -> None:
    with pytest.raises(OverflowError):
        hash_keys([2**63])


def test_half_a_surrogate_pair_is_an_error() -> None:
    with pytest.raises(UnicodeEncodeError):
        hash_keys(["\ud800"])

from __future__ import annotations

import pytest

from dlrm_factory.tools.init.roles import bag_length, embedding_dim, table_rows


@pytest.mark.parametrize(
    ("ids", "rows"),
    [(1, 10), (9, 12), (10, 12), (100, 120), (101, 150), (4_100, 5_000), (833_334, 1_200_000)],
)
def test_tables_have_a_fifth_more_rows_in_round_numbers(ids, rows):
    assert table_rows(ids) == rows
    assert rows >= ids


def test_no_table_is_larger_than_fbgemm_takes():
    assert table_rows(3 * 10**9) == 2**31 - 1


@pytest.mark.parametrize(
    ("distinct", "dim"), [([], 8), ([256], 8), ([3, 257], 16), ([4_096], 16), ([65_536], 32), ([10**9], 64)]
)
def test_embedding_dim_is_twice_the_fourth_root(distinct, dim):
    assert embedding_dim(distinct) == dim


def test_bags_may_grow():
    assert [bag_length(longest, True) for longest in (1, 2, 6, 100)] == [2, 3, 10, 150]

from __future__ import annotations

import numpy as np

from dlrm_factory.tools.data.dataset import epoch_order
from dlrm_factory.tools.data.split import is_held_out, is_validation, split_rows


def test_every_row_is_on_one_side():
    training, held_out = split_rows(10_000, holdout=0.1, seed=1)
    assert sorted([*training, *held_out]) == list(range(10_000))
    assert 900 < len(held_out) < 1100


def test_more_rows_do_not_move_earlier_ones():
    few, many = split_rows(1000, holdout=0.3, seed=7)[1], split_rows(5000, holdout=0.3, seed=7)[1]
    assert few.tolist() == [row for row in many if row < 1000]


def test_a_larger_holdout_keeps_the_smaller_one():
    small, large = (split_rows(1000, holdout=share, seed=7)[1] for share in (0.1, 0.2))
    assert set(small) < set(large)


def test_seeds_split_independently():
    one, two = (split_rows(100_000, holdout=0.1, seed=seed)[1] for seed in (1, 2))
    assert 800 < len(np.intersect1d(one, two)) < 1200


def test_epochs_are_different_orders_of_the_same_rows():
    rows = np.arange(100, 200)
    first, second = (epoch_order(rows, seed=3, epoch=epoch) for epoch in (0, 1))
    assert sorted(first) == sorted(second) == rows.tolist()
    assert first.tolist() != second.tolist()
    assert first.tolist() == epoch_order(rows, seed=3, epoch=0).tolist()


def test_validation_rows_are_drawn_apart_from_held_out_ones():
    rows = np.arange(20_000, dtype=np.int64)
    held_out = is_held_out(rows, holdout=0.1, seed=1)
    validation = is_validation(rows, share=0.1, seed=1)
    assert 0.09 < validation.mean() < 0.11
    assert 0.06 < validation[held_out].mean() < 0.14
    assert np.array_equal(validation[500:700], is_validation(rows[500:700], share=0.1, seed=1))

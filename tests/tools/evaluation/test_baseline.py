from __future__ import annotations

import sys

import msgspec
import numpy as np
import pytest

from dlrm_factory.config import DLRMDeclaration, demo, tiny
from dlrm_factory.errors import DataError, StackError
from dlrm_factory.tools.data.dataset import ClickDataset
from dlrm_factory.tools.data.source import generate_clicks
from dlrm_factory.tools.evaluation import baseline as module
from dlrm_factory.tools.evaluation.baseline import Columns, check_baseline, train_baseline
from dlrm_factory.tools.metrics.metrics import auc


def dataset(bags: list[list[int]], weights: list[float] | None = None) -> ClickDataset:
    """Users 7, 7, 8, none; ``bags`` of tags; price 1, 2, … and age 0."""
    n = len(bags)
    users = np.array([7, 7, 8], dtype=np.int32)
    lengths = np.array([len(bag) for bag in bags])
    tags = np.array([tag for bag in bags for tag in bag], dtype=np.int32)
    return ClickDataset(
        dense=np.stack([np.arange(1.0, n + 1), np.zeros(n)], axis=1).astype(np.float32),
        labels=np.zeros((n, 1), dtype=np.float32),
        values=(users, np.empty(0, dtype=np.int32), tags),
        offsets=(
            np.array([0, 1, 2, 3, 3]),
            np.zeros(n + 1, dtype=np.int64),
            np.append(0, np.cumsum(lengths)),
        ),
        weights=(None, None, None if weights is None else np.array(weights, dtype=np.float32)),
    )


BAGS = [[4, 5], [4], [], [5, 4, 4]]


def weighted(declaration: DLRMDeclaration) -> DLRMDeclaration:
    *others, tags = declaration.sparse_features
    tags = msgspec.structs.replace(tags, weighted=True)
    return msgspec.structs.replace(declaration, sparse_features=[*others, tags])


def test_columns_by_hand():
    clicks = dataset(BAGS)
    columns = Columns(tiny(), clicks, np.arange(4))
    # Two ids of users, no id of items at all, tags 4 (four times) and 5 (twice).
    assert columns.names == [
        "price", "age_days", "user_id", "item_id", "item_tags.count", "item_tags.0", "item_tags.1",
    ]  # fmt: skip
    assert columns.categories == [2, 3]
    nan = np.nan
    np.testing.assert_array_equal(
        columns.matrix(clicks.features(np.arange(4))),
        [
            [1, 0, 0, nan, 2, 1, 1],
            [2, 0, 0, nan, 1, 1, 0],
            [3, 0, 1, nan, 0, 0, 0],
            [4, 0, nan, nan, 3, 2, 1],
        ],
    )


def test_ids_that_training_rows_lack_are_the_other_category():
    clicks = dataset(BAGS)
    columns = Columns(tiny(), clicks, np.array([0, 1]))
    assert columns.matrix(clicks.features(np.array([2])))[0, 2] == 1  # user 8; user 7 is 0


def test_only_the_most_frequent_ids_have_a_place(monkeypatch):
    monkeypatch.setattr(module, "MAX_CATEGORIES", 1)
    monkeypatch.setattr(module, "MAX_INDICATORS", 1)
    clicks = dataset(BAGS)
    columns = Columns(tiny(), clicks, np.arange(4))
    matrix = columns.matrix(clicks.features(np.arange(4)))
    assert columns.names[-2:] == ["item_tags.count", "item_tags.0"]
    assert matrix[:3, 2].tolist() == [0, 0, 1]
    assert matrix[:, -1].tolist() == [1, 1, 0, 2]


def test_weights_count_in_place_of_1():
    clicks = dataset(BAGS, [0.5, 2.0, 1.5, 1.0, 0.25, 0.5])
    columns = Columns(weighted(tiny()), clicks, np.arange(4))
    matrix = columns.matrix(clicks.features(np.arange(4)))
    assert matrix[:, -3:].tolist() == [[2, 0.5, 2], [1, 1.5, 0], [0, 0, 0], [3, 0.75, 1]]


def test_a_single_weighted_id_keeps_its_weight():
    clicks = dataset([[4], [4], [], [5]], [0.5, 2.0, 1.5])
    columns = Columns(weighted(tiny()), clicks, np.arange(4))
    assert columns.names[-2:] == ["item_tags", "item_tags.weight"]
    assert columns.categories[-1] == len(columns.names) - 2
    matrix = columns.matrix(clicks.features(np.array([0, 1, 3])))
    assert matrix[:, -2:].tolist() == [[0, 0.5], [0, 2.0], [1, 1.5]]


def ignore(done: int, total: int) -> None: ...


def test_it_learns_from_the_training_rows_the_same_each_time():
    clicks = generate_clicks(tiny(), rows=6000, write_to=None, observe=lambda progress: None)
    grown: list[tuple[int, int]] = []
    one = train_baseline(
        tiny(), clicks.dataset, clicks.training, observe=lambda done, total: grown.append((done, total))
    )
    batches = [clicks.dataset.features(rows) for rows in np.array_split(clicks.held_out, 3)]
    logits = one.logits(batches)
    labels = clicks.dataset.labels[clicks.held_out, 0]
    assert logits.dtype == np.float32
    assert auc(labels, logits) > 0.65
    # Log-odds, not probabilities: on average near those of the base rate.
    assert np.mean(1 / (1 + np.exp(-logits))) == pytest.approx(clicks.dataset.labels.mean(), abs=0.03)
    trees = int(one.detail.split()[0])
    assert grown[-1] == (trees, trees)
    assert 1 <= trees < 1000
    again = train_baseline(tiny(), clicks.dataset, clicks.training, observe=ignore)
    assert again.logits(batches).tolist() == logits.tolist()


def test_nothing_is_printed(capfd):
    clicks = generate_clicks(demo(), rows=20_000, write_to=None, observe=lambda progress: None)
    train_baseline(demo(), clicks.dataset, clicks.training[:3000], observe=ignore)
    assert capfd.readouterr().out == ""


def test_held_out_rows_do_not_matter():
    clicks = generate_clicks(tiny(), rows=3000, write_to=None, observe=lambda progress: None)
    batch = clicks.dataset.features(clicks.held_out)
    before = train_baseline(tiny(), clicks.dataset, clicks.training, observe=ignore).logits([batch])
    clicks.dataset.labels[clicks.held_out] = 1 - clicks.dataset.labels[clicks.held_out]
    clicks.dataset.dense[clicks.held_out] = 1e6
    after = train_baseline(tiny(), clicks.dataset, clicks.training, observe=ignore).logits([batch])
    assert after.tolist() == before.tolist()


def test_labels_that_are_alike_cannot_be_learned():
    with pytest.raises(DataError, match="labels of the training rows are all alike"):
        train_baseline(tiny(), dataset(BAGS), np.arange(4), observe=ignore)


def test_few_rows_are_enough():
    clicks = generate_clicks(tiny(), rows=40, write_to=None, observe=lambda progress: None)
    trained = train_baseline(tiny(), clicks.dataset, clicks.training, observe=ignore)
    assert np.isfinite(trained.logits([clicks.dataset.features(clicks.held_out)])).all()


def test_without_the_package_one_sentence_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "lightgbm", None)
    with pytest.raises(StackError, match=r"--baseline needs LightGBM.* extra `baseline`"):
        check_baseline()

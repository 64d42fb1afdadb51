"""Rows by what training saw of their ids."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from dlrm_factory.config import DLRMDeclaration, SparseFeature, tiny
from dlrm_factory.tools.data import source
from dlrm_factory.tools.data.seen_bags import GROUPS
from dlrm_factory.tools.data.source import Clicks, read_clicks


def declared(feature: SparseFeature | None = None, **training) -> DLRMDeclaration:
    """The preset, with ``feature`` in place of the one of its name."""
    base = tiny()
    features = [feature if feature and feature.name == f.name else f for f in base.sparse_features]
    options = msgspec.structs.replace(base.training, **training)
    return msgspec.structs.replace(base, sparse_features=features, training=options)


def read(write_csv, declaration: DLRMDeclaration, train: list[str], held_out: list[str]) -> Clicks:
    """Rows are ``user_id,item_id,item_tags``."""
    paths = [
        write_csv(*[f"{i % 2},1,1,{row}" for i, row in enumerate(rows)], name=name)
        for name, rows in (("train.csv", train), ("held_out.csv", held_out))
    ]
    return read_clicks(declaration, paths[:1], held_out=paths[1:], rows=None, observe=lambda _: None)


def groups(clicks: Clicks, feature: int) -> list[str]:
    return [GROUPS[code] for code in clicks.held_out_seen[:, feature]]


def test_samples_are_grouped_feature_by_feature(write_csv):
    train = ["u1,3,1|2", "u2,4,", ",5,9"]
    held_out = ["u1,3,1|9", "u3,6,1|3", ",4,3|4", "u2|u9,,", "17,3,2"]
    clicks = read(write_csv, declared(), train, held_out)
    assert groups(clicks, 0) == ["all seen", "none seen", "no id", "some seen", "none seen"]
    assert groups(clicks, 1) == ["all seen", "none seen", "all seen", "no id", "all seen"]
    assert groups(clicks, 2) == ["all seen", "some seen", "none seen", "no id", "all seen"]


@pytest.mark.parametrize("unknown", [1, "drop", "error"])
def test_ids_that_are_not_in_the_vocabulary_were_not_seen(write_csv, unknown):
    user = msgspec.structs.replace(
        tiny().sparse_features[0],
        ids="vocabulary",
        out_of_vocabulary=unknown,
        max_length=2,
        over_max_length="truncate",
    )
    declaration = declared(user)
    tables = [msgspec.structs.replace(declaration.tables[0], min_count=2), *declaration.tables[1:]]
    declaration = msgspec.structs.replace(declaration, tables=tables)
    clicks = read(
        write_csv,
        declaration,
        ["a,1,1", "a|b,1,1", "b,1,1", "c,1,1"],
        ["a,1,1", "c,1,1", "d,1,1", "a|d,1,1", "a|b|d,1,1"],
    )
    # c came once, so it has no row of its own.
    last = (
        "all seen" if unknown == 1 else "some seen"
    )  # what is not in the vocabulary goes before bags are cut
    assert groups(clicks, 0) == ["all seen", "none seen", "none seen", "some seen", last]


def test_ids_that_are_cut_off_were_not_seen(write_csv):
    user = msgspec.structs.replace(tiny().sparse_features[0], max_length=1, over_max_length="truncate")
    lists = msgspec.structs.replace(user, max_length=2)
    clicks = read(write_csv, declared(lists), ["a|b|c,1,1"] * 2, ["b,1,1", "c,1,1", "a|b|z,1,1"])
    assert groups(clicks, 0) == ["all seen", "none seen", "all seen"]


def test_rows_that_are_left_out_were_not_seen(write_csv):
    item = msgspec.structs.replace(tiny().sparse_features[1], unreadable="missing")
    clicks = read(
        write_csv,
        declared(item, max_bad_rows=0.3),
        ["a,1,1", "b,2,99", "c,sku,1", "d,4,1"],
        ["b,2,1", "c,1,1", "d,sku,1"],
    )
    assert groups(clicks, 0) == ["none seen", "all seen", "all seen"]
    assert groups(clicks, 1) == ["none seen", "all seen", "no id"]


@pytest.mark.parametrize("refit", [False, True])
def test_validation_rows_are_seen_if_the_model_is_trained_anew_on_them(write_csv, refit):
    rows = [f"u{i},{i},1" for i in range(200)]
    declaration = declared(early_stopping=1, validation=0.3, refit=refit)
    clicks = read(write_csv, declaration, rows, rows)
    assert 30 < len(clicks.validation) < 90
    expected = np.full(200, "all seen", dtype=object)
    if not refit:
        expected[clicks.validation] = "none seen"
    assert groups(clicks, 0) == groups(clicks, 1) == expected.tolist()


def test_as_many_held_out_rows_are_grouped_as_travel_with_a_model(write_csv, monkeypatch):
    monkeypatch.setattr("dlrm_factory.tools.data.seen_bags.MAX_SAMPLES", 3)
    assert source.SeenIdsRecorder(declared()).held_out_groups().shape == (0, 3)
    clicks = read(write_csv, declared(), ["a,1,1"], [f"{name},1,1" for name in "abaa"])
    assert groups(clicks, 0) == ["all seen", "none seen", "all seen"]

"""The record of the ids that training saw."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
import torch

from dlrm_factory.config import DLRMDeclaration, tiny
from dlrm_factory.errors import WeightsError
from dlrm_factory.features import hash_keys
from dlrm_factory.weights.seen_ids import (
    MAX_FILTER_BYTES,
    MIN_FILTER_BYTES,
    SeenIds,
    read_seen_ids,
    write_seen_ids,
)

USER, ITEM, TAGS = range(3)  # hash of 1000, index of 200, index of 50


def with_rows(rows: int) -> DLRMDeclaration:
    """The hashed table with so many rows."""
    base = tiny()
    user = msgspec.structs.replace(base.tables[0], num_embeddings=rows)
    return msgspec.structs.replace(base, tables=[user, *base.tables[1:]])


def in_vocabulary() -> DLRMDeclaration:
    """item_id by vocabulary, with 2 of its 200 rows for unknown ids."""
    base = tiny()
    features = list(base.sparse_features)
    features[ITEM] = msgspec.structs.replace(features[ITEM], ids="vocabulary", out_of_vocabulary=2)
    return msgspec.structs.replace(base, sparse_features=features)


def test_rows_are_known_exactly_and_by_feature():
    seen = SeenIds(tiny())
    seen.add(ITEM, np.array([0, 7, 8, 199, 7]))
    assert np.flatnonzero(seen.has(ITEM, np.arange(200))).tolist() == [0, 7, 8, 199]
    assert not seen.has(TAGS, np.arange(50)).any()
    assert seen.false_share(ITEM) == 0


def test_rows_of_unknown_ids_are_never_seen():
    seen = SeenIds(in_vocabulary())
    seen.add(ITEM, np.array([3, 197, 198, 199]))
    assert np.flatnonzero(seen.has(ITEM, np.arange(200))).tolist() == [3, 197]


def test_hashed_ids_are_known_one_by_one_though_they_share_rows():
    keys = hash_keys([f"u{i}" for i in range(20_000)])
    seen = SeenIds(tiny())
    for part in np.split(keys[:10_000], 10):
        seen.add(USER, part)
    assert seen.has(USER, keys[:10_000]).all()
    assert seen.has(USER, keys[10_000:]).mean() < 0.001
    assert 0 < seen.false_share(USER) < 0.001


@pytest.mark.parametrize("ids_a_row", [0.67, 4])
def test_the_share_of_false_ones_is_as_told(ids_a_row):
    rows = 100_000
    seen, keys = SeenIds(with_rows(rows)), hash_keys(list(range(int(ids_a_row * rows) + 50_000)))
    seen.add(USER, keys[:-50_000])
    told = seen.false_share(USER)
    assert told == pytest.approx({0.67: 0.0026, 4: 0.375}[ids_a_row], rel=0.05)
    assert seen.has(USER, keys[-50_000:]).mean() == pytest.approx(told, rel=0.15)


def test_its_size_is_bounded_whatever_the_ids():
    for rows, size in ((1000, MIN_FILTER_BYTES), (300_000, 2**19), (2**30, MAX_FILTER_BYTES)):
        tensors = SeenIds(with_rows(rows)).tensors()
        assert [len(tensor) for tensor in tensors.values()] == [size, 25, 7]


def test_it_travels_as_it_is(tmp_path):
    seen = SeenIds(tiny())
    seen.add(ITEM, np.array([5]))
    seen.add(USER, hash_keys(["u"]))
    write_seen_ids(seen, tmp_path)
    found = read_seen_ids(tmp_path, tiny())
    assert found is not None
    assert found.has(ITEM, np.array([4, 5])).tolist() == [False, True]
    assert found.has(USER, hash_keys(["u", "v"])).tolist() == [True, False]
    assert SeenIds.of_tensors({}, tiny(), "c") is None
    assert read_seen_ids(tmp_path / "elsewhere", tiny()) is None


@pytest.mark.parametrize(
    "change",
    [
        {"seen_ids.item_id": torch.zeros(24, dtype=torch.uint8)},
        {"seen_ids.item_id": torch.zeros(25)},
        {"seen_ids.item_id": torch.zeros(5, 5, dtype=torch.uint8)},
        {"seen_ids.stranger": torch.zeros(25, dtype=torch.uint8)},
    ],
)
def test_a_record_of_other_features_is_refused(change):
    with pytest.raises(
        WeightsError, match="c: its record of the ids that training saw is not of the declared"
    ):
        SeenIds.of_tensors(SeenIds(tiny()).tensors() | change, tiny(), "c")


def test_a_damaged_file_is_refused(tmp_path):
    (tmp_path / "seen_ids.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(WeightsError, match="is not a safetensors file"):
        read_seen_ids(tmp_path, tiny())

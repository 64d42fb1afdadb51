"""Encoded rows on disk: the same dataset, nothing left behind, and clear errors."""

from __future__ import annotations

import errno
import logging
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.depth import examples

from dlrm_factory.config import tiny
from dlrm_factory.errors import DataError
from dlrm_factory.tools.data import dataset, dataset_builder, source
from dlrm_factory.tools.data.dataset import Scratch, epoch_order, epoch_windows
from dlrm_factory.tools.data.source import generate_clicks, read_clicks


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(dataset, "BLOCK_ROWS", 16)
    monkeypatch.setattr(dataset, "WINDOW_BLOCKS", 3)


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "clicks.parquet"
    generate_clicks(tiny(), rows=1000, write_to=path, observe=lambda _: None)
    return path


def read(path, **options):
    return read_clicks(tiny(), [path], rows=None, observe=lambda _: None, **options)


def test_a_mapped_dataset_is_the_same(tmp_path, data, small_blocks):
    folder = tmp_path / "scratch"
    memory, mapped = read(data), read(data, scratch=folder)
    assert mapped.dataset.pages is not None
    assert list(folder.iterdir()) == []
    assert mapped.training.tolist() == memory.training.tolist()
    assert mapped.held_out.tolist() == memory.held_out.tolist()
    assert mapped.dataset.labels.tolist() == memory.dataset.labels.tolist()
    rng = np.random.default_rng(0)
    for rows in (
        np.arange(1000),
        rng.integers(0, 1000, 200),
        np.array([999, 0]),
        np.empty(0, dtype=np.int64),
    ):
        one, other = memory.dataset.features(rows), mapped.dataset.features(rows)
        for name in ("dense", "lengths", "values"):
            assert getattr(one, name).tolist() == getattr(other, name).tolist()


def test_an_epoch_goes_window_by_window(data, tmp_path, small_blocks):
    mapped = read(data, scratch=tmp_path)
    order = mapped.dataset.epoch_order(mapped.training, seed=1, epoch=2)
    pieces = list(epoch_windows(mapped.training, seed=1, epoch=2, blocks=3))
    assert order.tolist() == np.concatenate(pieces).tolist()
    assert len(pieces) == 21  # 63 blocks of 16 rows
    assert all(len(np.unique(piece // 16)) <= 3 for piece in pieces)
    assert sorted(order.tolist()) == mapped.training.tolist()
    assert order.tolist() != mapped.dataset.epoch_order(mapped.training, seed=1, epoch=3).tolist()


@given(st.sets(st.integers(0, 5 * dataset.BLOCK_ROWS), max_size=60), st.integers(1, 4))
def test_windows_hold_every_row_once_and_few_blocks(numbers, blocks):
    rows = np.array(sorted(numbers), dtype=np.int64)
    pieces = list(epoch_windows(rows, seed=3, epoch=0, blocks=blocks))
    assert sorted(np.concatenate(pieces).tolist()) == rows.tolist()
    assert all(len(np.unique(piece // dataset.BLOCK_ROWS)) <= blocks for piece in pieces)
    if len(pieces) == 1:
        assert pieces[0].tolist() == epoch_order(rows, seed=3, epoch=0).tolist()


def test_rows_that_memory_does_not_hold_go_to_disk(tmp_path, data, monkeypatch, caplog):
    monkeypatch.setattr(source, "memory_for_rows", lambda: 10_000)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "other"))
    with caplog.at_level(logging.WARNING):
        spilled = read(data)
    assert spilled.dataset.pages is not None
    assert "they go to unnamed files in" in caplog.text
    assert list((tmp_path / "other").iterdir()) == []
    monkeypatch.setattr(source, "memory_for_rows", lambda: 10**9)
    memory = read(data)
    assert memory.dataset.pages is None
    assert spilled.dataset.features(np.arange(1000)).values.tolist() == (
        memory.dataset.features(np.arange(1000)).values.tolist()
    )


@settings(max_examples=examples(20))
@given(st.lists(st.integers(0, 5), max_size=6))
def test_a_scratch_array_grows_part_by_part(tmp_path_factory, sizes):
    array = Scratch(tmp_path_factory.mktemp("scratch")).array(np.int32)
    parts = [np.arange(size, dtype=np.int64) + 10 * i for i, size in enumerate(sizes)]
    for part in parts:
        array.append(part)
    values, mapping = array.mapped()
    assert values.dtype == np.int32
    assert values.tolist() == [n for part in parts for n in part.tolist()]
    assert (mapping is None) == (not any(sizes))


def test_a_full_disk_is_one_clear_error_and_nothing_is_left(tmp_path, data, monkeypatch):
    class Full:
        def __init__(self, file):
            self._file, self._room = file, 5000

        def write(self, data):
            if not self._room:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            written = self._file.write(data[: self._room])
            self._room -= written
            return written

        def __getattr__(self, name):
            return getattr(self._file, name)

    make = dataset.tempfile.TemporaryFile
    monkeypatch.setattr(dataset.tempfile, "TemporaryFile", lambda **options: Full(make(**options)))
    with pytest.raises(
        DataError, match=r"is full after .* of encoded rows; .* give --scratch a folder on a larger"
    ):
        read(data, scratch=tmp_path / "full")
    assert list((tmp_path / "full").iterdir()) == []


def test_a_folder_that_cannot_be_written_is_refused(tmp_path, data):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="give --scratch another folder"):
        read(data, scratch=tmp_path / "file" / "below")


def test_weights_of_bags_are_mapped_too(tmp_path, small_blocks):
    from support.raw_features import raw_declaration

    declaration = raw_declaration(fitted=False)
    path = tmp_path / "clicks.parquet"
    made = generate_clicks(declaration, rows=300, write_to=path, observe=lambda _: None)
    mapped = read_clicks(declaration, [path], rows=None, scratch=tmp_path, observe=lambda _: None)
    rows = np.arange(300)[::-1].copy()
    one, other = made.dataset.features(rows).weights, mapped.dataset.features(rows).weights
    assert one is not None
    assert other is not None
    assert one.tolist() == other.tolist()
    assert dataset_builder.dataset_of([], declaration).dense.shape == (0, 3)

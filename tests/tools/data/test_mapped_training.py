"""A model trained on mapped rows is the one trained on the same rows in memory."""

from __future__ import annotations

import msgspec
import pytest
import torch
from safetensors.torch import load_file

from dlrm_factory.config import tiny
from dlrm_factory.tools.data import dataset, source
from dlrm_factory.tools.data.dataset import ClickDataset, epoch_windows
from dlrm_factory.tools.data.source import generate_clicks
from dlrm_factory.tools.training import train


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "clicks.parquet"
    generate_clicks(tiny(), rows=3000, write_to=path, observe=lambda _: None)
    return path


def weights_of(tmp_path, data, **options):
    declaration = msgspec.structs.replace(tiny(), training=msgspec.structs.replace(tiny().training, epochs=2))
    train(declaration, output=tmp_path / "c.safetensors", data=[data], **options)
    return load_file(tmp_path / "c.safetensors")


def same(first, second) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_few_rows_train_the_same_wherever_they_are(tmp_path, data):
    assert same(weights_of(tmp_path, data), weights_of(tmp_path, data, scratch=tmp_path / "scratch"))


def test_many_rows_train_the_same_in_the_same_order(tmp_path, data, monkeypatch):
    monkeypatch.setattr(dataset, "BLOCK_ROWS", 64)
    monkeypatch.setattr(dataset, "WINDOW_BLOCKS", 4)
    monkeypatch.setattr(source, "memory_for_rows", lambda: 20_000)
    mapped = weights_of(tmp_path, data)
    monkeypatch.setattr(source, "memory_for_rows", lambda: 10**9)
    plain = weights_of(tmp_path, data)
    assert not same(mapped, plain)

    def windows(self, rows, *, seed, epoch):
        assert self.pages is None
        return torch.cat(
            [torch.from_numpy(piece) for piece in epoch_windows(rows, seed=seed, epoch=epoch, blocks=4)]
        ).numpy()

    monkeypatch.setattr(ClickDataset, "epoch_order", windows)
    assert same(mapped, weights_of(tmp_path, data))

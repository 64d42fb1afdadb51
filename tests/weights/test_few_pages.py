"""Lookups of a tool keep few pages of the tables; those of a server keep all, and both give the same numbers."""

from __future__ import annotations

import mmap
from pathlib import Path

import msgspec
import numpy as np
import pytest
from support.batches import random_batch, random_state, uncompiled
from support.mapped_files import resident

from dlrm_factory.compiled import DirectLookup
from dlrm_factory.config import tiny
from dlrm_factory.scorer import Scorer
from dlrm_factory.weights import few_pages
from dlrm_factory.weights.checkpoint import open_checkpoint, save_checkpoint
from dlrm_factory.weights.few_pages import FewPages
from dlrm_factory.weights.seal import TABLE_FILE
from dlrm_factory.weights.sealed import SealedWeights, seal_weights

ROWS = 60_000
MAX_ROWS = 64
# A row of 32 bytes lies in one page or two; a batch's last piece may hold some rows more than are allowed.
BOUND = 2 * 2 * MAX_ROWS * mmap.PAGESIZE


@pytest.fixture(scope="module")
def sealed(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("few")
    base = uncompiled(tiny())
    tables = [msgspec.structs.replace(table, num_embeddings=ROWS, dtype="fp32") for table in base.tables]
    declaration = msgspec.structs.replace(base, tables=tables)
    save_checkpoint(folder / "c.safetensors", declaration, random_state(declaration))
    seal_weights(open_checkpoint(folder / "c.safetensors"), folder / "sealed")
    return folder / "sealed"


@pytest.fixture
def bounded(monkeypatch):
    monkeypatch.setattr(few_pages, "_MIN_BYTES", 1)
    monkeypatch.setattr(few_pages, "_MAX_ROWS", MAX_ROWS)


def scored(scorer: Scorer) -> list[np.ndarray]:
    batches = [random_batch(scorer.declaration, size, seed=size) for size in (1, 300)]
    return [
        *(scorer.logits(batch) for batch in batches),
        *(scorer.look_up(batch).pooled.numpy() for batch in batches),
    ]


def test_a_scorer_of_a_tool_keeps_few_pages_and_scores_alike(sealed, bounded):
    path = sealed / TABLE_FILE
    server = Scorer.load(sealed)
    expected = scored(server)
    kept = resident(path)
    assert kept > 4 * BOUND  # a server gives nothing back
    found = scored(Scorer.load(sealed, release=True))
    assert resident(path) - kept <= BOUND
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)


def test_rows_come_without_their_neighbours_and_are_given_back(sealed, bounded):
    weights = SealedWeights(sealed)
    pages = FewPages(weights.declaration, weights.tables)
    lookup = DirectLookup(weights.declaration, weights.tables)
    path = sealed / TABLE_FILE
    before = resident(path)
    for seed in range(5):
        for piece in pages.pieces(random_batch(weights.declaration, 50, seed=seed)):
            assert piece.values.size <= 2 * MAX_ROWS
            lookup.look_up(piece)
            assert resident(path) - before <= BOUND
    weights.tables.release()
    assert resident(path) == before


def test_rows_longer_than_a_page(tmp_path, bounded):
    base = tiny()
    dim = 2048  # 8 KiB a row
    layers = [*base.dense_arch_layer_sizes[:-1], dim]
    tables = [
        msgspec.structs.replace(table, num_embeddings=300, embedding_dim=dim, dtype="fp32")
        for table in base.tables
    ]
    declaration = uncompiled(msgspec.structs.replace(base, tables=tables, dense_arch_layer_sizes=layers))
    save_checkpoint(tmp_path / "c.safetensors", declaration, random_state(declaration))
    seal_weights(open_checkpoint(tmp_path / "c.safetensors"), tmp_path / "sealed")
    weights = SealedWeights(tmp_path / "sealed")
    batch = random_batch(declaration, 3)
    expected = DirectLookup(declaration, weights.tables).look_up(batch).pooled
    path = tmp_path / "sealed" / TABLE_FILE
    pages = FewPages(declaration, weights.tables)
    before = resident(path)
    (piece,) = pages.pieces(batch)
    copied = resident(path) - before
    found = DirectLookup(declaration, weights.tables).look_up(piece).pooled
    assert resident(path) - before == copied  # all pages of all rows were there
    assert found.equal(expected)


def test_a_small_file_is_mapped_as_it_is(sealed, monkeypatch):
    monkeypatch.setattr(few_pages, "_MIN_BYTES", (sealed / TABLE_FILE).stat().st_size + 1)
    weights = SealedWeights(sealed)
    mapping = weights.tables.bytes
    batch = random_batch(weights.declaration, 2000)
    assert [*FewPages(weights.declaration, weights.tables).pieces(batch)] == [batch]
    assert weights.tables.bytes is mapping

"""Vocabularies and statistics come from the training part of the data, and from all of it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.raw_features import canonical, raw_declaration

from dlrm_factory.config import DLRMDeclaration
from dlrm_factory.tools.data.files import Chunk
from dlrm_factory.tools.data.fitting import FittedFeatures, IdCounts, Moments, fit_features, needs_fitting
from dlrm_factory.tools.data.split import HashSplit, first_rows, split_chunks, split_rows

ANY_ID = st.one_of(
    st.integers(-5, 5),
    st.integers(-(2**63), 2**63 - 1),
    st.sampled_from(["a", "b", "é", "", "-0", "007", str(2**63)]),
)


@given(
    st.lists(st.lists(ANY_ID, max_size=12), max_size=4), st.integers(1, 8), st.integers(1, 3), st.booleans()
)
def test_ids_are_ordered_by_count_then_value(chunks: list, most: int, min_count: int, as_text: bool) -> None:
    counts = IdCounts()
    for chunk in chunks:
        integers = [raw for raw in chunk if isinstance(raw, int)]
        texts = [raw for raw in chunk if isinstance(raw, str)]
        if as_text:
            counts.add(pa.array([str(raw) for raw in chunk], pa.string()))
        else:
            counts.add(np.array(integers, dtype=np.int64))
            counts.add(pa.array(texts, pa.string()).dictionary_encode())
    seen = Counter(canonical(raw) for chunk in chunks for raw in chunk)

    def rank(raw: int | str) -> tuple:
        value = (0, raw, b"") if isinstance(raw, int) else (1, 0, raw.encode())
        return (-seen[raw], *value)

    expected = [raw for raw in sorted(seen, key=rank) if seen[raw] >= min_count][:most]
    found = counts.ordered(max_ids=most, min_count=min_count)
    assert list(found.ids) == expected
    assert found.distinct == len(seen)
    assert found.left_out == seen.total() - sum(seen[raw] for raw in expected)


@given(st.lists(st.lists(st.floats(-1e4, 1e4, width=32), max_size=20), max_size=5))
def test_moments_of_chunks_are_those_of_all(chunks: list) -> None:
    moments = Moments()
    for chunk in chunks:
        moments.add(np.array(chunk, dtype=np.float32))
    everything = np.array([value for chunk in chunks for value in chunk], dtype=np.float64)
    if not len(everything):
        assert (moments.mean, moments.std) == (0, 1)
        return
    assert moments.mean == pytest.approx(everything.mean(), abs=1e-6)
    if everything.std() > 1e-3:
        assert moments.std == pytest.approx(everything.std(), rel=1e-6)


def chunks_of(columns: dict, *sizes: int) -> list[Chunk]:
    table, start, chunks = pa.RecordBatch.from_pydict(columns), 0, []
    for size in sizes:
        part = table.slice(start, size)
        chunks.append(Chunk(source="clicks", first_row=start + 1, columns=part))
        start += size
    return chunks


def fit(declaration: DLRMDeclaration, chunks: list[Chunk], rows: int | None = None) -> FittedFeatures:
    split = HashSplit.of(declaration.training)
    return fit_features(
        declaration, split_chunks(first_rows(chunks, rows), split), rows=rows, observe=lambda _: None
    )


def columns(n: int) -> dict:
    return {
        "click": [0] * n,
        "price": [float(i % 120) for i in range(n)],
        "hour": [None if i % 7 == 0 else i % 24 for i in range(n)],
        "visits": [1.0] * n,
        "user": [f"u{i % 13}" if i % 3 else None for i in range(n)],
        "item": [f"i{i}" for i in range(n)],
        "seen": [[f"i{i}", "often"] for i in range(n)],
        "seen.weights": [[1.0, 2.0]] * n,
        "tags": [[1]] * n,
    }


def test_only_the_training_part_is_looked_at() -> None:
    declaration, n = raw_declaration(fitted=False), 300
    assert needs_fitting(declaration)
    fitted = fit(declaration, chunks_of(columns(n), 100, 1, 199), rows=200)
    options = declaration.training
    training, held_out = split_rows(200, holdout=options.holdout, seed=options.seed)
    assert len(held_out) > 5

    assert fitted.vocabularies is not None
    assert fitted.vocabularies.sizes["t_item"] == 30  # all rows of the table
    table = np.ones(1, dtype=np.int64)
    assert fitted.vocabularies.rows(["often"], table) == 0
    # Among equally frequent ids text is in order, so these have the rows after it.
    kept = sorted(f"i{i}" for i in training)[:29]
    assert fitted.vocabularies.rows(kept, np.repeat(table, 29)).tolist() == list(range(1, 30))
    never = [f"i{i}" for i in held_out] + ["i200", "i299"]
    assert (fitted.vocabularies.rows(never, np.repeat(table, len(never))) == -1).all()

    price, hour, visits = fitted.declaration.dense_features
    logs = np.log1p(np.clip(np.arange(200)[training] % 120, 0, 100))
    assert (price.mean, price.std) == (pytest.approx(logs.mean()), pytest.approx(logs.std()))
    hours = np.where(training % 7 == 0, 12, training % 24)  # the default stands for what is missing
    assert (hour.mean, hour.std) == (pytest.approx(hours.mean()), pytest.approx(hours.std()))
    assert visits == declaration.dense_features[2]


def test_declared_statistics_are_kept_and_nothing_else_needs_a_pass() -> None:
    declaration = raw_declaration()
    dense_only = msgspec.structs.replace(
        declaration,
        sparse_features=declaration.sparse_features[3:],
        tables=declaration.tables[2:],
    )
    assert not needs_fitting(dense_only)

    def never():
        raise AssertionError("the data was read")
        yield

    assert fit_features(dense_only, never(), rows=None, observe=print).declaration == dense_only


def test_min_count_leaves_rare_ids_to_the_spare_rows() -> None:
    declaration = raw_declaration()
    tables = [msgspec.structs.replace(declaration.tables[0], min_count=15), *declaration.tables[1:]]
    rare = msgspec.structs.replace(declaration, tables=tables)
    data = columns(300)
    data["user"] = ["often"] * 150 + ["rare"] * 10 + [None] * 140
    fitted = fit(rare, chunks_of(data, 300))
    assert fitted.vocabularies is not None
    assert fitted.vocabularies.sizes["t_user"] == 1


def test_strict_ids_without_a_row_are_warned_of(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    fit(raw_declaration(), chunks_of(columns(100), 100))
    (record,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert 'table "t_item": 30 of ' in record.getMessage()
    assert "left out of the bags of item, which refuse them" in record.getMessage()

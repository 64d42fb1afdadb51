"""Raw rows drawn from the ground truth, in the columns and types a user's file would have."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dlrm_factory.config.declaration import DenseFeature, DLRMDeclaration, SparseFeature
from dlrm_factory.config.label import parse_label
from dlrm_factory.tools.data.click_files import Chunk, weights_column
from dlrm_factory.tools.data.ground_truth import (
    ZIPF_SHIFT,
    GroundTruth,
    distinct_ids,
    ground_truth,
    longest_bag,
)

__all__ = ["GeneratedChunk", "default_rows", "generate"]

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

_CHUNK_ROWS = 65_536
_MISSING = 0.02  # share of cells left empty
_ROWS_PER_ID = 700
_FEWEST_ROWS, _MOST_ROWS = 20_000, 1_500_000


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratedChunk:
    """Raw rows, and what no file has: ``logits`` float64 [n] of the ground truth."""

    chunk: Chunk
    logits: Float64


def default_rows(declaration: DLRMDeclaration) -> int:
    """Enough rows to learn the ground truth: 700 for each distinct id, within [20,000, 1,500,000]."""
    ids = sum(distinct_ids(f, declaration.table(f.table).num_embeddings) for f in declaration.sparse_features)
    return int(np.clip(_ROWS_PER_ID * ids, _FEWEST_ROWS, _MOST_ROWS))


def generate(declaration: DLRMDeclaration, rows: int, seed: int) -> Iterator[GeneratedChunk]:
    """``rows`` raw rows. Row i depends on the declaration, the seed and i alone."""
    truth = ground_truth(declaration, seed)
    for start in range(0, rows, _CHUNK_ROWS):
        rng = np.random.default_rng([seed, 1, start])
        chunk = _generate_chunk(declaration, truth, rng, start)
        columns = chunk.chunk.columns.slice(0, rows - start)
        yield GeneratedChunk(
            chunk=Chunk(source="generated clicks", first_row=start + 1, columns=columns),
            logits=chunk.logits[: rows - start],
        )


def _generate_chunk(
    declaration: DLRMDeclaration, truth: GroundTruth, rng: np.random.Generator, start: int
) -> GeneratedChunk:
    arrays: dict[str, pa.Array] = {}
    standardised = np.empty((_CHUNK_ROWS, len(declaration.dense_features)))
    for j, dense in enumerate(declaration.dense_features):
        arrays[dense.name], standardised[:, j] = _dense_column(dense, rng)
    bags = []
    for sparse in declaration.sparse_features:
        ids, lengths = _draw_bags(sparse, declaration.table(sparse.table).num_embeddings, rng)
        arrays[sparse.name] = _sparse_column(sparse, ids, lengths)
        weights = _draw_weights(len(ids), rng) if sparse.weighted else None
        if weights is not None:
            arrays[weights_column(sparse.name)] = _as_lists(pa.array(weights), lengths)
        bags.append((ids, lengths, weights))
    logits = truth.logits(standardised, bags)
    clicks = rng.random(_CHUNK_ROWS) < 1 / (1 + np.exp(-logits))
    columns = pa.RecordBatch.from_pydict(_label_column(declaration.training.label, clicks) | arrays)
    return GeneratedChunk(chunk=Chunk(source="", first_row=start + 1, columns=columns), logits=logits)


def _label_column(declared: str, clicks: npt.NDArray[np.bool_]) -> dict[str, pa.Array]:
    """0 and 1; for a comparison a number that is so and one that is not."""
    label = parse_label(declared)
    if label.comparison is None:
        return {label.column: pa.array(clicks.astype(np.int8))}
    return {label.column: pa.array(np.where(clicks, *map(label.comparison.example, (True, False))))}


def _dense_column(feature: DenseFeature, rng: np.random.Generator) -> tuple[pa.Array, Float64]:
    """Raw values with gaps, and the standardised numbers of the ground truth (a gap counts as the default).

    With log1p: log-normal around the default. Else uniform on default ± max(1, |default|).
    """
    missing = rng.random(_CHUNK_ROWS) < _MISSING
    least, most = feature.clip or (-np.inf, np.inf)
    if feature.takes_log:
        centre = np.log1p(max(feature.default, 0.0))
        values = np.round(np.expm1(np.abs(centre + rng.normal(0, 1, _CHUNK_ROWS))), 2)
        clipped = np.clip(np.where(missing, feature.default, values), least, most)
        standardised = np.log1p(np.maximum(clipped, 0.0)) - centre
        if centre == 0:  # half a normal: mean sqrt(2 / pi), variance 1 - 2 / pi
            standardised = (standardised - np.sqrt(2 / np.pi)) / np.sqrt(1 - 2 / np.pi)
    else:
        width = max(1.0, abs(feature.default))
        values = np.round(feature.default + rng.uniform(-width, width, _CHUNK_ROWS), 2)
        clipped = np.clip(np.where(missing, feature.default, values), least, most)
        standardised = (clipped - feature.default) / width * np.sqrt(3.0)
    return pa.array(values, mask=missing), standardised


def _draw_bags(feature: SparseFeature, num_embeddings: int, rng: np.random.Generator) -> tuple[Int64, Int64]:
    """Ids int64 [lengths.sum()] in [0, distinct_ids), and lengths int64 [n]; some bags are empty."""
    lengths = rng.integers(1, longest_bag(feature), _CHUNK_ROWS, endpoint=True)
    lengths[rng.random(_CHUNK_ROWS) < _MISSING] = 0
    weights = 1 / (np.arange(distinct_ids(feature, num_embeddings)) + ZIPF_SHIFT)
    cumulative = np.cumsum(weights) / weights.sum()
    ids = np.searchsorted(cumulative[:-1], rng.random(int(lengths.sum())), side="right")
    return ids.astype(np.int64), lengths


def _draw_weights(size: int, rng: np.random.Generator) -> Float64:
    """Float64 [size]: 0.5, 1 or 1.5."""
    return rng.choice([0.5, 1.0, 1.5], size)


def _as_lists(values: pa.Array, lengths: Int64) -> pa.Array:
    """A list a sample; null where it is empty."""
    offsets = np.concatenate(([0], np.cumsum(lengths))).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), values, mask=pa.array(lengths == 0))


def _sparse_column(feature: SparseFeature, ids: Int64, lengths: Int64) -> pa.Array:
    """Single-valued ids that are no index are text, as ``user_17``; other ids are integers, lists if multi-valued."""
    empty = lengths == 0
    if longest_bag(feature) > 1:
        return _as_lists(_texts(feature, ids) if feature.ids == "vocabulary" else pa.array(ids), lengths)
    column = np.zeros(len(lengths), dtype=np.int64)
    column[~empty] = ids
    if feature.ids == "index":
        return pa.array(column, mask=empty)
    return _texts(feature, column, empty)


def _texts(feature: SparseFeature, ids: Int64, missing: npt.NDArray[np.bool_] | None = None) -> pa.Array:
    """Text such as ``user_17``. Features that share a table's vocabulary share its texts."""
    shared = feature.table.removeprefix("t_") if feature.ids == "vocabulary" else feature.name
    name = shared.removesuffix("_id")
    names = pa.array([f"{name}_{k}" for k in range(int(ids.max(initial=0)) + 1)])
    return pa.DictionaryArray.from_arrays(pa.array(ids.astype(np.int32), mask=missing), names)

"""Clicks from a stated model, so that the best reachable AUC is known.

A click is drawn with probability sigmoid(z), where

    z = BIAS + sum over dense features j of   a_j u_j + b_j (u_j² - 1)
             + sum over sparse features f of  mean of e_f[id] over the ids of the bag (0 for an empty bag);
                                              of weight times e_f[id] if the feature is weighted
             + <p[id of feature g], q[id of feature h]>

with u_j the dense value, transformed as declared and standardised. g and h are the two single-valued features
with fewest ids, but at least MIN_IDS each (in the demo model country and item category). The last term is
left out if they make more than MAX_PAIRS pairs: a DLRM would need far more clicks than are generated to
learn, say, each user's taste for each item. e, p and q are normal, a and b of random sign, all drawn from the
seed and scaled so that the three lines above have the variances DENSE, SPARSE and INTERACTION, whatever the
declaration; p and q have RANK dimensions. Of several outputs each has a z of its own; where one counts only where
another's label is 1, it is 0 elsewhere.

Feature values are independent of each other. A feature with 1 < max_length <= 100, or a sequence of any length, has
bags of 1 to 5 ids, any other one id; 2% of all cells are empty. Ids are Zipf-like: P(id k) ∝ 1 / (k + ZIPF_SHIFT).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dlrm_factory.config.declaration import DenseFeature, DLRMDeclaration, Pooling, SparseFeature
from dlrm_factory.config.label import label_columns, parse_label
from dlrm_factory.errors import DataError
from dlrm_factory.tools.data.files import Chunk, weights_column

__all__ = [
    "GeneratedChunk",
    "GroundTruth",
    "default_rows",
    "distinct_ids",
    "generate",
    "ground_truth",
    "max_bag_length",
]

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
RawBag = tuple[Int64, Int64, "Float64 | None"]
BIAS = -1.5
DENSE, SPARSE, INTERACTION = 0.5, 1.2, 0.8
RANK = 3
MIN_IDS = 4
MAX_PAIRS = 2000
ZIPF_SHIFT = 10.0
_MAX_IDS = 5000
_HASH_ROOM = 16  # table rows per generated id, so that few ids share a row
_MAX_BAG_LENGTH = 5
_MAX_DECLARED_LENGTH = 100
_CHUNK_ROWS = 65_536
_MISSING = 0.02  # share of cells left empty
_ROWS_PER_ID = 700
_MIN_ROWS, _MAX_ROWS = 20_000, 1_500_000


def distinct_ids(feature: SparseFeature, num_embeddings: int) -> int:
    """Number of different ids that are generated for ``feature``."""
    room = num_embeddings // _HASH_ROOM if feature.ids == "hash" else num_embeddings
    return max(2, min(room, _MAX_IDS)) if num_embeddings > 1 else 1


def max_bag_length(feature: SparseFeature, pooling: Pooling) -> int:
    """Length of the longest bag that is generated for ``feature``, of a table with ``pooling``.

    A high max_length, such as the default, limits requests and says little of the data: one id then, if the feature
    is no sequence.
    """
    several = pooling == "none" or feature.max_length <= _MAX_DECLARED_LENGTH
    return min(feature.max_length, _MAX_BAG_LENGTH) if several else 1


def _max_bag_lengths(declaration: DLRMDeclaration) -> list[int]:
    return [max_bag_length(f, declaration.table(f.table).pooling) for f in declaration.sparse_features]


@dataclass(frozen=True, slots=True, kw_only=True)
class GroundTruth:
    """The model that clicks come from. Features are in declared order.

    Fields:
        linear, quadratic: float64 [dense features], a and b.
        effects: per sparse feature, float64 [ids], e.
        pair: places of g and h among the sparse features; None if none are fit.
        p, q: float64 [ids, RANK].
    """

    linear: Float64
    quadratic: Float64
    effects: tuple[Float64, ...]
    pair: tuple[int, int] | None
    p: Float64
    q: Float64

    def logits(self, dense: Float64, bags: list[RawBag]) -> Float64:
        """z of each sample: float64 [n].

        Args:
            dense: [n, dense features], standardised.
            bags: per sparse feature, ids int64 [lengths.sum()], lengths int64 [n], weights like ids or None.
        """
        z = BIAS + dense @ self.linear + (dense**2 - 1) @ self.quadratic
        for effects, (ids, lengths, weights) in zip(self.effects, bags, strict=True):
            z += _bag_means(effects[ids] if weights is None else effects[ids] * weights, lengths)
        if self.pair is not None:
            z += self._interaction(*(bags[f] for f in self.pair))
        return z

    def _interaction(self, first: RawBag, second: RawBag) -> Float64:
        p, q = (
            np.stack([_bag_means(vectors[ids][:, r], lengths) for r in range(RANK)], axis=1)
            for vectors, (ids, lengths, _) in ((self.p, first), (self.q, second))
        )
        return np.einsum("nr,nr->n", p, q)


def ground_truth(declaration: DLRMDeclaration, seed: int, output: int = 0) -> GroundTruth:
    """The ground truth of ``declaration``, ``seed`` and the probability at place ``output``.

    Equal arguments give equal models.
    """
    rng = np.random.default_rng([seed, 0] if output == 0 else [seed, 0, output])
    longest = _max_bag_lengths(declaration)
    ids = [distinct_ids(f, declaration.table(f.table).num_embeddings) for f in declaration.sparse_features]
    dense = len(declaration.dense_features)
    pair = _pair(declaration, ids)
    vectors = [ids[f] for f in pair] if pair else [0, 0]
    scale = (INTERACTION / RANK) ** 0.25
    return GroundTruth(
        # Half of the variance is quadratic: Var(u²) = 2 for a normal u.
        linear=_signed(rng, dense) * np.sqrt(DENSE / 2 / max(dense, 1)),
        quadratic=_signed(rng, dense) * np.sqrt(DENSE / 4 / max(dense, 1)),
        effects=tuple(
            rng.normal(0, np.sqrt(SPARSE / len(ids) / _mean_reciprocal(length)), n)
            for n, length in zip(ids, longest, strict=True)
        ),
        pair=pair,
        p=rng.normal(0, scale, (vectors[0], RANK)),
        q=rng.normal(0, scale, (vectors[1], RANK)),
    )


def _mean_reciprocal(longest: int) -> float:
    """Variance of a mean over a bag of 1 to ``longest`` ids, as a share of one id's variance."""
    return float(np.mean(1 / np.arange(1, longest + 1)))


def _signed(rng: np.random.Generator, n: int) -> Float64:
    return rng.choice([-1.0, 1.0], n)


def _pair(declaration: DLRMDeclaration, ids: list[int]) -> tuple[int, int] | None:
    """The two features that interact, in declared order; None if none are fit."""
    enough = [f for f, n in enumerate(ids) if n >= MIN_IDS]
    longest = _max_bag_lengths(declaration)
    enough.sort(key=lambda f: (longest[f], ids[f], f))
    if len(enough) < 2 or ids[enough[0]] * ids[enough[1]] > MAX_PAIRS:
        return None
    first, second = sorted(enough[:2])
    return first, second


def _bag_means(values: Float64, lengths: Int64) -> Float64:
    """float64 [n]: the mean of each bag's values; 0 for an empty bag."""
    samples = np.repeat(np.arange(len(lengths)), lengths)
    sums = np.bincount(samples, weights=values, minlength=len(lengths))
    return sums / np.maximum(lengths, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratedChunk:
    """Raw rows, and what no file has: ``logits`` float64 [n, probabilities] of the ground truth."""

    chunk: Chunk
    logits: Float64


def default_rows(declaration: DLRMDeclaration) -> int:
    """Enough rows to learn the ground truth: 700 for each distinct id, within [20,000, 1,500,000]."""
    ids = sum(distinct_ids(f, declaration.table(f.table).num_embeddings) for f in declaration.sparse_features)
    return int(np.clip(_ROWS_PER_ID * ids, _MIN_ROWS, _MAX_ROWS))


def generate(declaration: DLRMDeclaration, rows: int, seed: int) -> Iterator[GeneratedChunk]:
    """``rows`` raw rows. Row i depends on the declaration, the seed and i alone.

    DataError if several outputs have their labels from one column.
    """
    if len(label_columns(declaration.labels)) < len(declaration.labels):
        raise DataError(
            "several outputs have their labels from one column, for which no clicks can be generated; "
            "give each a column of its own, or name files with --data"
        )
    truths = [ground_truth(declaration, seed, p) for p in range(len(declaration.probabilities))]
    for start in range(0, rows, _CHUNK_ROWS):
        rng = np.random.default_rng([seed, 1, start])
        chunk = _generate_chunk(declaration, truths, rng, seed, start)
        columns = chunk.chunk.columns.slice(0, rows - start)
        yield GeneratedChunk(
            chunk=Chunk(source="generated clicks", first_row=start + 1, columns=columns),
            logits=chunk.logits[: rows - start],
        )


def _generate_chunk(
    declaration: DLRMDeclaration,
    truths: Sequence[GroundTruth],
    rng: np.random.Generator,
    seed: int,
    start: int,
) -> GeneratedChunk:
    arrays: dict[str, pa.Array] = {}
    standardised = np.empty((_CHUNK_ROWS, len(declaration.dense_features)))
    for j, dense in enumerate(declaration.dense_features):
        arrays[dense.name], standardised[:, j] = _dense_column(dense, rng)
    bags = []
    for sparse, longest in zip(declaration.sparse_features, _max_bag_lengths(declaration), strict=True):
        ids, lengths = _draw_bags(sparse, longest, declaration.table(sparse.table).num_embeddings, rng)
        arrays[sparse.name] = _sparse_column(sparse, longest, ids, lengths)
        weights = _draw_weights(len(ids), rng) if sparse.weighted else None
        if weights is not None:
            arrays[weights_column(sparse.name)] = _as_lists(pa.array(weights), lengths)
        bags.append((ids, lengths, weights))
    logits = np.stack([truth.logits(standardised, bags) for truth in truths], axis=1)
    labels = _label_columns(declaration, logits, rng, seed, start)
    columns = pa.RecordBatch.from_pydict(labels | arrays)
    return GeneratedChunk(chunk=Chunk(source="", first_row=start + 1, columns=columns), logits=logits)


def _label_columns(
    declaration: DLRMDeclaration, logits: Float64, rng: np.random.Generator, seed: int, start: int
) -> dict[str, pa.Array]:
    """Columns of the labels. The first output's come from ``rng``, which no other draw follows."""
    columns: dict[str, pa.Array] = {}
    clicked: dict[str, npt.NDArray[np.bool_]] = {}
    for p, output in enumerate(declaration.probabilities):
        own = rng if p == 0 else np.random.default_rng([seed, 2, start, p])
        clicks = own.random(_CHUNK_ROWS) < 1 / (1 + np.exp(-logits[:, p]))
        if output.where is not None:
            clicks &= clicked[output.where]
        clicked[output.name] = clicks
        columns |= _label_column(declaration.label_of(output), clicks)
    return columns


def _label_column(declared: str, clicks: npt.NDArray[np.bool_]) -> dict[str, pa.Array]:
    """Column of 0 and 1; for a comparison, of a number that is so and one that is not."""
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


def _draw_bags(
    feature: SparseFeature, longest: int, num_embeddings: int, rng: np.random.Generator
) -> tuple[Int64, Int64]:
    """Ids int64 [lengths.sum()] in [0, distinct_ids), and lengths int64 [n]; some bags are empty."""
    lengths = rng.integers(1, longest, _CHUNK_ROWS, endpoint=True)
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


def _sparse_column(feature: SparseFeature, longest: int, ids: Int64, lengths: Int64) -> pa.Array:
    """Single-valued ids that are no index are text, as ``user_17``; other ids are integers, lists if multi-valued."""
    empty = lengths == 0
    if longest > 1:
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

"""LightGBM on the same rows, the baseline of an evaluation.

Encoded samples become the columns that LightGBM learns from, without a look at labels.

From each dense feature: its number, as the DLRM gets it. Trees ask for order alone, which log1p and standardising keep.

From each sparse feature whose bags hold one id at most: a category, for the MAX_CATEGORIES ids most frequent in the
training rows; all other ids are one more category, and no id is a missing value.

From each sparse feature with longer bags: how many ids there are, and for each of the MAX_INDICATORS ids most frequent
in the training rows a column with the number of times it is in the bag.

A weighted feature counts its weights in place of 1; with one id at most it has one more column, the weight.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dlrm_factory.batch import FeatureBatch
from dlrm_factory.config.declaration import DLRMDeclaration
from dlrm_factory.errors import DataError, StackError
from dlrm_factory.tools.data.dataset import ClickDataset, Int64, slices
from dlrm_factory.tools.data.labels import counts_for

__all__ = [
    "BASELINE",
    "Columns",
    "TreeObserver",
    "check_baseline",
    "train_baseline",
]

MAX_CATEGORIES = 4096
MAX_INDICATORS = 64

Float32 = npt.NDArray[np.float32]
Int32 = npt.NDArray[np.int32]

_COLUMN_BLOCK = 65_536

TreeObserver = Callable[[int, int], None]  # trees grown, and the most there will be
BASELINE = "LightGBM"  # as people read it
MAX_TREES = 1000
PATIENCE = 30
STOPPING_SHARE = 0.1
_BLOCK = 16_384
_MANY_ROWS = 100_000
_PARAMETERS = {
    "objective": "binary",
    "metric": "binary_logloss",
    "learning_rate": 0.1,
    "num_leaves": 63,
    "min_data_in_leaf": 50,
    "deterministic": True,
    "force_row_wise": True,
    "verbosity": -1,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sparse:
    """Columns of one sparse feature.

    Fields:
        is_category: one category column; else a count and indicators.
        codes: int32 [num_embeddings], the place of each row of the table among the frequent ones, or ``kept``.
        kept: how many ids have a place.
        weighted: its ids carry weights.
    """

    name: str
    is_category: bool
    codes: Int32
    kept: int
    weighted: bool

    @property
    def names(self) -> list[str]:
        if self.is_category:
            return [self.name, f"{self.name}.weight"] if self.weighted else [self.name]
        return [f"{self.name}.count", *(f"{self.name}.{place}" for place in range(self.kept))]

    def fill(self, columns: Float32, values: Int64, lengths: Int64, weights: Float32) -> None:
        """Write the feature's columns, float32 [B, len(names)], of bags laid one after another."""
        samples = np.repeat(np.arange(len(lengths)), lengths)
        codes = self.codes[values]
        if self.is_category:
            columns[:] = np.nan
            columns[samples, 0] = codes
            if self.weighted:
                columns[samples, 1] = weights
            return
        columns[:] = 0
        columns[:, 0] = lengths
        frequent = codes < self.kept
        np.add.at(columns, (samples[frequent], codes[frequent] + 1), weights[frequent])


class Columns:
    """Columns of all features, found in training rows."""

    def __init__(self, declaration: DLRMDeclaration, dataset: ClickDataset, rows: Int64) -> None:
        """``rows``: int64, the training rows of ``dataset``, ascending."""
        self._dense = declaration.dense_names
        tables = [declaration.table(feature.table).num_embeddings for feature in declaration.sparse_features]
        counts = [np.zeros(rows_of_table, dtype=np.int64) for rows_of_table in tables]
        longest = [0] * len(tables)
        for piece in slices(rows, _COLUMN_BLOCK):
            batch = dataset.features(piece)
            for f, (values, lengths, _) in enumerate(_bags(batch)):
                # Not bincount: it would walk the whole table for each block.
                np.add.at(counts[f], values, 1)
                longest[f] = max(longest[f], int(lengths.max(initial=0)))
        self._sparse = [
            _sparse(feature.name, feature.weighted, counts[f], longest[f])
            for f, feature in enumerate(declaration.sparse_features)
        ]

    @property
    def names(self) -> list[str]:
        """Names of the columns, in order."""
        return [*self._dense, *(name for sparse in self._sparse for name in sparse.names)]

    @property
    def categories(self) -> list[int]:
        """Places of the columns that are categories."""
        first, found = len(self._dense), []
        for sparse in self._sparse:
            found += [first] if sparse.is_category else []
            first += len(sparse.names)
        return found

    def matrix(self, batch: FeatureBatch) -> Float32:
        """The columns of ``batch``: float32 [B, len(names)]; NaN where a value is missing."""
        columns = np.empty((len(batch), len(self.names)), dtype=np.float32)
        columns[:, : len(self._dense)] = batch.dense
        first = len(self._dense)
        for sparse, (values, lengths, weights) in zip(self._sparse, _bags(batch), strict=True):
            width = len(sparse.names)
            sparse.fill(columns[:, first : first + width], values, lengths, weights)
            first += width
        return columns


def _bags(batch: FeatureBatch) -> list[tuple[Int64, Int64, Float32]]:
    """Per sparse feature: values and weights (ones if there are none) of all bags, and their lengths, int64 [B]."""
    ends = np.cumsum(batch.lengths.sum(axis=1, dtype=np.int64))
    weights = np.ones(len(batch.values), dtype=np.float32) if batch.weights is None else batch.weights
    parts = zip(np.split(batch.values, ends[:-1]), np.split(weights, ends[:-1]), batch.lengths, strict=True)
    return [(values, lengths.astype(np.int64), own) for values, own, lengths in parts]


def _sparse(name: str, weighted: bool, counts: Int64, longest: int) -> _Sparse:
    is_category = longest <= 1
    most = MAX_CATEGORIES if is_category else MAX_INDICATORS
    kept = min(most, int(np.count_nonzero(counts)))
    order = np.argsort(-counts, kind="stable")[:kept]
    codes = np.full(len(counts), kept, dtype=np.int32)
    codes[order] = np.arange(kept, dtype=np.int32)
    return _Sparse(name=name, is_category=is_category, codes=codes, kept=kept, weighted=weighted)


@dataclass(frozen=True, slots=True)
class Baseline:
    """A trained LightGBM. ``detail``: how it was trained, as people read it."""

    booster: Any
    columns: Columns
    detail: str

    def logits(self, batches: Iterable[FeatureBatch]) -> Float32:
        """Logits of all samples: float32 [N]."""
        found = [self.booster.predict(self.columns.matrix(batch), raw_score=True) for batch in batches]
        return np.concatenate(found).astype(np.float32)


def check_baseline() -> None:
    """StackError if LightGBM is not installed."""
    try:
        import lightgbm  # noqa: F401
    except ImportError as error:
        raise StackError(
            f"--baseline needs LightGBM, which is not usable here ({error}); "
            "install this project's extra `baseline`, or the package lightgbm"
        ) from None


def train_baseline(
    declaration: DLRMDeclaration,
    dataset: ClickDataset,
    rows: Int64,
    *,
    output: int = 0,
    observe: TreeObserver,
) -> Baseline:
    """Train on ``rows`` (int64, ascending) of ``dataset``, and on all of them in the end.

    Of several outputs it learns the probability at place ``output``, from the rows that count for it.

    A part of them, drawn by the declaration's seed, first says how many trees are best; then a model of that many is
    trained anew on all. Equal arguments give equal models.

    DataError if the labels of the training rows are all alike.
    """
    import lightgbm

    # It prints to standard output, whatever its verbosity says, and `--json` has that for itself.
    lightgbm.register_logger(logging.getLogger("lightgbm"))
    rows = rows[counts_for(dataset.labels[rows], output)]
    labels = dataset.labels[:, output]
    if not 0 < labels[rows].sum() < len(rows):
        several = len(declaration.probabilities) > 1
        of = f' of output "{declaration.probabilities[output].name}"' if several else ""
        raise DataError(
            f"the labels of the training rows{of} are all alike; there is nothing to learn for the baseline"
        )
    columns = Columns(declaration, dataset, rows)
    rng = np.random.default_rng(declaration.training.seed)
    stopping = rng.random(len(rows)) < STOPPING_SHARE
    parameters = _PARAMETERS | {"seed": declaration.training.seed % 2**31, "num_threads": _threads(len(rows))}
    learning, judging = rows[~stopping], rows[stopping]
    trees = MAX_TREES // 10
    if _can_judge(labels, learning, judging):
        trees = _best_trees(columns, dataset, labels, learning, judging, parameters, observe)
    booster = _train(columns, dataset, labels, rows, parameters, trees, observe)
    return Baseline(
        booster=booster,
        columns=columns,
        detail=f"{trees} trees of {_PARAMETERS['num_leaves']} leaves, {len(columns.names)} columns",
    )


def _threads(rows: int) -> int:
    """Threads of a small job wait for each other more than they work, above all while another program runs."""
    return len(os.sched_getaffinity(0)) if rows >= _MANY_ROWS else 1


def _can_judge(labels: Float32, learning: Int64, judging: Int64) -> bool:
    return all(0 < labels[rows].sum() < len(rows) for rows in (learning, judging))


def _best_trees(
    columns: Columns,
    dataset: ClickDataset,
    labels: Float32,
    learning: Int64,
    judging: Int64,
    parameters: dict[str, Any],
    observe: TreeObserver,
) -> int:
    import lightgbm

    train = _dataset(columns, dataset, labels, learning)
    booster = lightgbm.train(
        parameters,
        train,
        num_boost_round=MAX_TREES,
        valid_sets=[_dataset(columns, dataset, labels, judging, reference=train)],
        callbacks=[lightgbm.early_stopping(PATIENCE, verbose=False), _progress(observe, MAX_TREES)],
    )
    return max(1, int(booster.best_iteration))


def _train(
    columns: Columns,
    dataset: ClickDataset,
    labels: Float32,
    rows: Int64,
    parameters: dict[str, Any],
    trees: int,
    observe: TreeObserver,
) -> Any:
    import lightgbm

    return lightgbm.train(
        parameters,
        _dataset(columns, dataset, labels, rows),
        num_boost_round=trees,
        callbacks=[_progress(observe, trees)],
    )


def _progress(observe: TreeObserver, total: int) -> Any:
    def tell(environment: Any) -> None:
        observe(environment.iteration + 1, total)

    return tell


def _dataset(
    columns: Columns, dataset: ClickDataset, labels: Float32, rows: Int64, reference: Any = None
) -> Any:
    import lightgbm

    class Rows(lightgbm.Sequence):
        """The matrix a block at a time: LightGBM keeps its own, of one byte a value."""

        batch_size = _BLOCK

        def __init__(self) -> None:
            self._start, self._block = -1, np.empty((0, 0))

        def __len__(self) -> int:
            return len(rows)

        def __getitem__(self, index: int | slice | Sequence[int]) -> npt.NDArray[np.float64]:
            if isinstance(index, slice):
                return self._matrix(rows[index])
            if not isinstance(index, (int, np.integer)):
                return np.stack([self[each] for each in index])
            start = index - index % _BLOCK  # rows are asked for one by one, in order
            if start != self._start:
                self._start, self._block = start, self._matrix(rows[start : start + _BLOCK])
            return self._block[index - start]

        def _matrix(self, some: Int64) -> npt.NDArray[np.float64]:
            return columns.matrix(dataset.features(some)).astype(np.float64)

    return lightgbm.Dataset(
        Rows(),
        label=labels[rows],
        reference=reference,
        feature_name=[f"column_{place}" for place in range(len(columns.names))],
        categorical_feature=columns.categories,
        params=_PARAMETERS,
    )

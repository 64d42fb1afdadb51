"""LightGBM on the model's training rows: a simpler model to hold the DLRM against."""

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
from dlrm_factory.tools.data.dataset import ClickDataset, Int64
from dlrm_factory.tools.evaluation.baseline.columns import Columns

__all__ = ["BASELINE", "Baseline", "TreeObserver", "check_baseline", "train_baseline"]

Float32 = npt.NDArray[np.float32]
TreeObserver = Callable[[int, int], None]  # trees grown, and the most there will be

BASELINE = "LightGBM"  # as people read it

MOST_TREES = 1000
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


@dataclass(frozen=True, slots=True)
class Baseline:
    """A trained LightGBM. ``detail``: how it was trained, as people read it."""

    booster: Any
    columns: Columns
    detail: str

    def logits(self, batches: Iterable[FeatureBatch]) -> Float32:
        """Of all samples: float32 [N]."""
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
    declaration: DLRMDeclaration, dataset: ClickDataset, rows: Int64, *, observe: TreeObserver
) -> Baseline:
    """Train on ``rows`` (int64, ascending) of ``dataset``, and on all of them in the end.

    A part of them, drawn by the declaration's seed, first says how many trees are best; then a model of that many is
    trained anew on all. Equal arguments give equal models.

    DataError if the labels of the training rows are all alike.
    """
    import lightgbm

    # It prints to standard output, whatever its verbosity says, and `--json` has that for itself.
    lightgbm.register_logger(logging.getLogger("lightgbm"))
    labels = dataset.labels
    if not 0 < labels[rows].sum() < len(rows):
        raise DataError(
            "the labels of the training rows are all alike; there is nothing to learn for the baseline"
        )
    columns = Columns(declaration, dataset, rows)
    rng = np.random.default_rng(declaration.training.seed)
    stopping = rng.random(len(rows)) < STOPPING_SHARE
    parameters = _PARAMETERS | {"seed": declaration.training.seed % 2**31, "num_threads": _threads(len(rows))}
    learning, judging = rows[~stopping], rows[stopping]
    trees = MOST_TREES // 10
    if _can_judge(labels, learning, judging):
        trees = _best_trees(columns, dataset, learning, judging, parameters, observe)
    booster = _train(columns, dataset, rows, parameters, trees, observe)
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
    learning: Int64,
    judging: Int64,
    parameters: dict[str, Any],
    observe: TreeObserver,
) -> int:
    import lightgbm

    train = _dataset(columns, dataset, learning)
    booster = lightgbm.train(
        parameters,
        train,
        num_boost_round=MOST_TREES,
        valid_sets=[_dataset(columns, dataset, judging, reference=train)],
        callbacks=[lightgbm.early_stopping(PATIENCE, verbose=False), _progress(observe, MOST_TREES)],
    )
    return max(1, int(booster.best_iteration))


def _train(
    columns: Columns,
    dataset: ClickDataset,
    rows: Int64,
    parameters: dict[str, Any],
    trees: int,
    observe: TreeObserver,
) -> Any:
    import lightgbm

    return lightgbm.train(
        parameters,
        _dataset(columns, dataset, rows),
        num_boost_round=trees,
        callbacks=[_progress(observe, trees)],
    )


def _progress(observe: TreeObserver, total: int) -> Any:
    def tell(environment: Any) -> None:
        observe(environment.iteration + 1, total)

    return tell


def _dataset(columns: Columns, dataset: ClickDataset, rows: Int64, reference: Any = None) -> Any:
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
        label=dataset.labels[rows],
        reference=reference,
        feature_name=[f"column_{place}" for place in range(len(columns.names))],
        categorical_feature=columns.categories,
        params=_PARAMETERS,
    )

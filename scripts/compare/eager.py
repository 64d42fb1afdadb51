"""Requests of columns → scores with the eager int8 model, as one would write it without this project's server."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dlrm_factory.batch import FeatureBatch, to_dense, to_keyed_jagged_tensors
from dlrm_factory.config import DLRMDeclaration
from dlrm_factory.factory import DLRMFactory
from dlrm_factory.weights.sealed import SealedWeights

__all__ = ["EagerModel", "columns_to_batch"]

Columns = Mapping[str, Sequence[Any]]


class EagerModel:
    """Sealed weights as a `DistributedModelParallel` model, run as TorchRec runs it, on one torch thread."""

    def __init__(self, sealed: Path) -> None:
        torch.set_num_threads(1)
        weights = SealedWeights(sealed)
        self.declaration = weights.declaration
        self._model = DLRMFactory(weights.declaration).build(weights=weights).model
        self._lock = threading.Lock()  # TorchRec's forward must not run in two threads at once

    @torch.no_grad()
    def score(self, columns: Columns) -> list[float]:
        """Probability of each sample. Any thread may call."""
        batch = columns_to_batch(self.declaration, columns)
        with self._lock:
            logits = self._model(to_dense(batch), *to_keyed_jagged_tensors(batch, self.declaration))
        return torch.sigmoid(logits).reshape(-1).tolist()

    def score_all(self, requests: Sequence[Columns]) -> list[list[float]]:
        """Probabilities of each request, scored in one batch."""
        names = (*self.declaration.dense_names, *self.declaration.sparse_names)
        joined = {name: [value for columns in requests for value in columns[name]] for name in names}
        scores = iter(self.score(joined))
        return [[next(scores) for _ in columns[names[0]]] for columns in requests]


def columns_to_batch(declaration: DLRMDeclaration, columns: Columns) -> FeatureBatch:
    """No checks, at most one id a bag: the least that turns the lists into what the model takes."""
    dense = np.array([columns[name] for name in declaration.dense_names], dtype=np.float32).T
    ids = [[-1 if each is None else each for each in columns[name]] for name in declaration.sparse_names]
    values = np.array(ids, dtype=np.int64)
    given = values >= 0
    return FeatureBatch(
        dense=np.nan_to_num(np.ascontiguousarray(dense)),
        lengths=given.astype(np.int32),
        values=values[given],
    )

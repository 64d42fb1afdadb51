"""Batches in a few sizes only, where that matters.

oneDNN, which computes in bfloat16, prepares itself anew for each batch size it meets: some milliseconds in the middle
of a request, and 3.5 MB of code that it keeps. So batches are computed in pieces of a few sizes, the last of them
filled up, and all sizes are met before the first request. In float32 the BLAS library computes, which takes any size
as it comes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache

import numpy as np
import numpy.typing as npt
import torch

from dlrm_factory.batch import Embeddings, split_embeddings
from dlrm_factory.compiled.dense_library import CompiledDense
from dlrm_factory.config.declaration import DLRMDeclaration

__all__ = ["SIZES", "SizedDense", "pieces"]

# Those up to 16 do without oneDNN, and keep nothing. The largest piece's pooled vectors still fit the CPU's cache.
SIZES = (1, 2, 4, 8, 12, 16, 32, 64, 128, 256, 512)
_SIZES = frozenset(SIZES)
Complete = Callable[[torch.Tensor, Embeddings], Embeddings]
# What a piece costs beside its samples, in samples: oneDNN takes some 20 µs a layer, whatever the size.
_PIECE_COSTS = 40


def pieces(samples: int) -> Iterator[tuple[int, int, int]]:
    """(start, stop, size) of the pieces that ``samples`` are computed in; size - (stop - start) rows are filling."""
    start = 0
    for size in (SIZES[-1],) * (samples // SIZES[-1]) + _cheapest(samples % SIZES[-1])[1]:
        yield start, min(start + size, samples), size
        start += size


@cache
def _cheapest(samples: int) -> tuple[int, tuple[int, ...]]:
    """Least cost of sizes that together hold ``samples``, and these sizes, largest first."""
    if samples == 0:
        return 0, ()
    filled = next(size for size in SIZES if size >= samples)
    ways: list[tuple[int, tuple[int, ...]]] = [(_PIECE_COSTS + filled, (filled,))]
    for size in SIZES:
        if _PIECE_COSTS <= size < samples:  # smaller ones would rather be filled
            cost, rest = _cheapest(samples - size)
            ways.append((_PIECE_COSTS + size + cost, tuple(sorted((size, *rest), reverse=True))))
    return min(ways)


class SizedDense:
    """Compiled dense parts that meet no batch of more than 512, and in bfloat16 none but of `SIZES`.

    For one thread at a time.
    """

    def __init__(self, compiled: CompiledDense, dtype: torch.dtype) -> None:
        """``dtype``: of the pooled vectors that ``compiled`` takes; in bfloat16 there are no sequences."""
        self.dtype = dtype
        self._compiled = compiled
        self._any_size = dtype is torch.float32
        self._dense = self._pooled = torch.empty(0)

    def warm_up(self, declaration: DLRMDeclaration, complete: Complete = lambda _, found: found) -> None:
        """Meet every size once. ``complete``: puts what the net's shared part makes of them into embeddings."""
        for size in SIZES:
            sequences = [
                torch.zeros(size, 1, declaration.table(feature.table).embedding_dim)
                for feature in declaration.sequence_features
            ]
            lengths = [torch.zeros(size, dtype=torch.int64) for _ in sequences]
            pooled = torch.zeros(size, declaration.pooled_columns, dtype=self.dtype)
            dense = torch.zeros(size, len(declaration.dense_features))
            self._compiled(dense, complete(dense, Embeddings(pooled, sequences, lengths)))

    def __call__(self, dense: torch.Tensor, found: Embeddings) -> npt.NDArray[np.float32]:
        """All outputs' columns, float32 [B, C], of dense features [B, n] and embeddings. B is at least 1."""
        samples = dense.shape[0]
        if found.pooled.dtype is not self.dtype:
            found = replace(found, pooled=found.pooled.to(self.dtype))
        if samples in _SIZES or (self._any_size and samples < SIZES[-1]):
            return self._compiled(dense, found).numpy()
        if self._any_size:
            whole = zip(dense.split(SIZES[-1]), split_embeddings(found, SIZES[-1]), strict=True)
            return np.concatenate([self._compiled(*piece).numpy() for piece in whole])
        parts = []
        for start, stop, size in pieces(samples):
            numbers, pooled = self._filled(dense[start:stop], found.pooled[start:stop], size)
            parts.append(self._compiled(numbers, Embeddings(pooled))[: stop - start].numpy())
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _filled(
        self, dense: torch.Tensor, pooled: torch.Tensor, size: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The rows given and, after them, whatever an earlier call has left: no row's logit depends on another's."""
        samples = dense.shape[0]
        if samples == size:
            return dense, pooled
        if self._dense.shape[1:] != dense.shape[1:] or self._pooled.shape[1:] != pooled.shape[1:]:
            self._dense = torch.zeros(SIZES[-1], *dense.shape[1:])
            self._pooled = torch.zeros(SIZES[-1], *pooled.shape[1:], dtype=self.dtype)
        self._dense[:samples] = dense
        self._pooled[:samples] = pooled
        return self._dense[:size], self._pooled[:size]

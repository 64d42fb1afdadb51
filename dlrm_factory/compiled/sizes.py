"""Batches in a few sizes only.

oneDNN prepares itself anew for each batch size it meets: some milliseconds in the middle of a request, and some
megabytes that it keeps. So batches are filled up to the next of a few sizes, all met before the first request.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import pad

__all__ = ["SIZES", "SizedDense", "pieces"]

# Each at most half as much again as the one before; the largest piece's pooled vectors still fit the CPU's cache.
SIZES = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)


def pieces(samples: int) -> Iterator[tuple[int, int, int]]:
    """(start, stop, size) of the pieces that ``samples`` are computed in; size - (stop - start) rows are filling."""
    for start in range(0, samples, SIZES[-1]):
        stop = min(start + SIZES[-1], samples)
        yield start, stop, next(size for size in SIZES if size >= stop - start)


class SizedDense:
    """A compiled `DenseNet` that meets no batch size but `SIZES`."""

    def __init__(self, compiled: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
        self._compiled = compiled

    def warm_up(self, dense_features: int, sparse_features: int, embedding_dim: int) -> None:
        """Meet every size once."""
        for size in SIZES:
            self._compiled(
                torch.zeros(size, dense_features), torch.zeros(size, sparse_features, embedding_dim)
            )

    def __call__(self, dense: torch.Tensor, pooled: torch.Tensor) -> npt.NDArray[np.float32]:
        """Click logits, float32 [B], of dense features [B, n] and pooled vectors [B, F, D]. B is at least 1."""
        parts = []
        for start, stop, size in pieces(dense.shape[0]):
            filling = size - (stop - start)
            part = self._compiled(_filled(dense[start:stop], filling), _filled(pooled[start:stop], filling))
            parts.append(part[: stop - start].numpy())
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _filled(rows: torch.Tensor, filling: int) -> torch.Tensor:
    """``rows`` with ``filling`` rows of zeros after them."""
    return pad(rows, (0, 0) * (rows.dim() - 1) + (0, filling)) if filling else rows

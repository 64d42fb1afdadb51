"""What each rank does with its slice, the leader too."""

from __future__ import annotations

import logging
import time

import numpy as np
import numpy.typing as npt
import torch

from dlrm_factory.batch import FeatureBatch, to_dense
from dlrm_factory.model.quantize import QuantizedEmbeddingBag
from dlrm_factory.ranks.slices import Slice
from dlrm_factory.scorer import Scorer

__all__ = ["ANSWER_HEAD", "FAILED", "LOOKUP_S", "TOTAL_S", "RankStep"]

logger = logging.getLogger(__name__)

# An answer: float32, these fields, then the logits.
FAILED, LOOKUP_S, TOTAL_S, ANSWER_HEAD = 0, 1, 2, 3


class RankStep:
    """Scores slices with a rank's part of the model.

    Errors of the lookup and of the dense parts are noted, and the rank takes part in the exchange all the same: the
    other ranks wait for it.
    """

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer
        self.reason = ""
        for module in scorer.built.model.modules():
            for kernel in getattr(module, "kernels", ()):
                if isinstance(kernel, QuantizedEmbeddingBag):
                    kernel.on_error = self.note

    def note(self, error: Exception) -> None:
        """Keep the step's first error, for the leader."""
        logger.error("A step failed on this rank", exc_info=error)
        self.reason = self.reason or f"{type(error).__name__}: {error}"

    def score(self, piece: Slice, size: int, *, eagerly: bool) -> torch.Tensor:
        """The answer: float32 [ANSWER_HEAD + size], the logits of the slice's samples first.

        Raises what the exchange raises, after which the group cannot go on.
        """
        self.reason = ""
        answer = torch.zeros(ANSWER_HEAD + size)
        started = time.perf_counter()
        pooled = self._scorer.pool_sharded(piece.batch if len(piece.batch) else self._blank())
        answer[LOOKUP_S] = time.perf_counter() - started
        if piece.samples:
            self._interact(piece, pooled, answer, eagerly)
        answer[FAILED] = float(bool(self.reason))
        answer[TOTAL_S] = time.perf_counter() - started
        return answer

    def _interact(self, piece: Slice, pooled: torch.Tensor, answer: torch.Tensor, eagerly: bool) -> None:
        samples = piece.samples
        try:
            for context, (start, stop) in enumerate(piece.spans.tolist(), start=samples):
                pooled[start:stop] += pooled[context]
            dense = to_dense(piece.batch)[:samples]
            logits: npt.NDArray[np.float32] = self._scorer.interact(dense, pooled[:samples], eagerly=eagerly)
            answer[ANSWER_HEAD : ANSWER_HEAD + samples] = torch.from_numpy(logits)
        except Exception as error:
            self.note(error)

    def _blank(self) -> FeatureBatch:
        """One sample with empty bags: TorchRec's exchange takes no batch without samples."""
        declaration = self._scorer.declaration
        return FeatureBatch(
            dense=np.zeros((1, len(declaration.dense_features)), dtype=np.float32),
            lengths=np.zeros((len(declaration.sparse_features), 1), dtype=np.int32),
            values=np.empty(0, dtype=np.int64),
        )

"""What each rank does with its part of a batch, the leader too."""

from __future__ import annotations

import logging
import time
from typing import NamedTuple

import torch

from dlrm_factory.ranks.exchange import Assembly, Exchange
from dlrm_factory.ranks.group import RankGroup
from dlrm_factory.ranks.layout import layout_of
from dlrm_factory.ranks.lookup import RankLookup, kernels_of
from dlrm_factory.ranks.parcels import Part
from dlrm_factory.ranks.routing import mean_features
from dlrm_factory.scorer import Scorer

__all__ = ["ANSWER_HEAD", "AnswerHead", "RankStep"]

logger = logging.getLogger(__name__)


class AnswerHead(NamedTuple):
    """Start of an answer, float32; the logits of the rank's own samples follow.

    ``failed``: 0 or 1. ``lookup``, ``exchange``, ``dense``: seconds. ``sent``: bytes, of vectors to other ranks.
    """

    failed: float
    lookup: float
    exchange: float
    dense: float
    sent: float


ANSWER_HEAD = len(AnswerHead._fields)


class RankStep:
    """Scores parts of batches with a rank's part of the model.

    Errors of the lookup and of the dense parts are noted, and the rank takes part in the exchange all the same: the
    other ranks wait for it.
    """

    def __init__(self, scorer: Scorer, group: RankGroup) -> None:
        self._scorer = scorer
        built, declaration = scorer.built, scorer.declaration
        self.layout = layout_of(built.plan, declaration)
        self.lookup = RankLookup(built.model, self.layout, group.rank, declaration)
        self._own = self.layout.ranks[group.rank]
        self._rank = group.rank
        self._exchange = Exchange(group, self.layout)
        self._assemble = Assembly(self.layout, declaration, built.device)
        apart = mean_features(self.layout)
        # Places, among the lengths of a part, of those of each feature that pools by the mean.
        self._means = torch.tensor(self.layout.means, device=built.device, dtype=torch.int64)
        self._mean_rows = [
            (True, self.layout.replicated.index(f))
            if f in self.layout.replicated
            else (False, apart.index(f))
            for f in self.layout.means
        ]
        self.reason = ""
        for kernel in kernels_of(built.model):
            kernel.on_error = self.note

    def note(self, error: Exception) -> None:
        """Keep the step's first error, for the leader."""
        logger.error("A step failed on this rank", exc_info=error)
        self.reason = self.reason or f"{type(error).__name__}: {error}"

    @torch.no_grad()
    def score(self, part: Part, *, dtype: torch.dtype, eagerly: bool) -> torch.Tensor:
        """The answer: float32 [ANSWER_HEAD + samples], the logits of the rank's own samples last.

        ``dtype``: of the vectors that cross. Raises what the exchange raises, after which the group cannot go on.
        """
        self.reason = ""
        answer = torch.zeros(ANSWER_HEAD + part.samples)
        started = time.perf_counter()
        pooled = self._look_up_sharded(part, dtype)
        looked_up = time.perf_counter()
        received = self._exchange.start(pooled, part.rows)
        sent = time.perf_counter()
        replicated = self._look_up_replicated(part, dtype)
        between = time.perf_counter()
        self._exchange.wait()
        there = time.perf_counter()
        if part.samples and not self.reason:
            self._interact(part, received, replicated, answer, eagerly)
        answer[:ANSWER_HEAD] = torch.tensor(
            AnswerHead(
                failed=float(bool(self.reason)),
                lookup=looked_up - started + between - sent,
                exchange=sent - looked_up + there - between,
                dense=time.perf_counter() - there,
                sent=self._exchange.sent_bytes,
            )
        )
        return answer

    def _look_up_sharded(self, part: Part, dtype: torch.dtype) -> torch.Tensor:
        rows = sum(part.rows)
        try:
            return self.lookup.sharded(part.sharded, rows, dtype)
        except Exception as error:
            self.note(error)
            return torch.zeros(rows, self._own.columns, dtype=dtype, device=self._means.device)

    def _look_up_replicated(self, part: Part, dtype: torch.dtype) -> torch.Tensor:
        rows = part.rows[self._rank]
        try:
            return self.lookup.replicated(part.replicated, rows, dtype)
        except Exception as error:
            self.note(error)
            return torch.empty(rows, 0, dtype=dtype, device=self._means.device)

    def _interact(
        self,
        part: Part,
        received: list[torch.Tensor],
        replicated: torch.Tensor,
        answer: torch.Tensor,
        eagerly: bool,
    ) -> None:
        try:
            pooled = self._assemble(received, replicated)
            if part.mean_lengths is not None and self._mean_rows:
                self._divide(pooled, part)
            for context, (start, stop) in enumerate(part.spans, start=part.samples):
                pooled[start:stop] += pooled[context]
            logits = self._scorer.interact(part.dense, pooled[: part.samples], eagerly=eagerly)
            answer[ANSWER_HEAD:] = torch.from_numpy(logits)
        except Exception as error:
            self.note(error)

    def _divide(self, pooled: torch.Tensor, part: Part) -> None:
        """Sums → means: by the whole bag's length, wherever its rows lie."""
        own, apart = part.replicated.lengths, part.mean_lengths
        assert own is not None
        assert apart is not None
        lengths = torch.stack([(own if here else apart)[row] for here, row in self._mean_rows])
        factors = lengths.clamp(min=1).float().reciprocal().T.unsqueeze(2)
        pooled[:, self._means] = (pooled[:, self._means] * factors).to(pooled.dtype)

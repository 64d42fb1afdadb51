"""What each rank does with its part of a batch, the leader too."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from dlrm_factory.ranks.exchange import Assembly, Exchange, Flight
from dlrm_factory.ranks.group import RankGroup
from dlrm_factory.ranks.layout import layout_of
from dlrm_factory.ranks.lookup import RankLookup, kernels_of
from dlrm_factory.ranks.parcels import Part
from dlrm_factory.ranks.routing import mean_features
from dlrm_factory.scorer import Scorer

__all__ = ["ANSWER_HEAD", "AnswerHead", "RankStep"]

Float32 = npt.NDArray[np.float32]

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


@dataclass(frozen=True, kw_only=True)
class _Begun:
    """A part whose vectors are under way; ``lookup`` and ``exchange``: seconds so far."""

    part: Part
    flight: Flight
    replicated: torch.Tensor
    failed: bool
    lookup: float
    exchange: float


class RankStep:
    """Scores parts of batches with a rank's part of the model.

    Errors of the lookup and of the dense parts are noted, and the rank takes part in the exchange all the same: the
    other ranks wait for it. ``reason`` is the first error since it was last cleared.
    """

    def __init__(self, scorer: Scorer, group: RankGroup) -> None:
        self._scorer = scorer
        built, declaration = scorer.built, scorer.declaration
        self.layout = layout_of(built.plan, declaration)
        self.lookup = RankLookup(built.model, self.layout, group.rank, declaration)
        self._own = self.layout.ranks[group.rank]
        self._rank = group.rank
        self._exchange = Exchange(group, self.layout, built.device)
        self._assemble = Assembly(self.layout, declaration)
        apart = mean_features(self.layout)
        # Places, among the lengths of a part, of those of each feature that pools by the mean.
        self._means = torch.tensor(self.layout.means, device=built.device, dtype=torch.int64)
        self._mean_rows = [
            (True, self.layout.replicated.index(f))
            if f in self.layout.replicated
            else (False, apart.index(f))
            for f in self.layout.means
        ]
        self._failed = False
        self.reason = ""
        for kernel in kernels_of(built.model):
            kernel.on_error = self.note

    def note(self, error: Exception) -> None:
        """Keep the first error, for the leader."""
        logger.error("A step failed on this rank", exc_info=error)
        self._failed = True
        self.reason = self.reason or f"{type(error).__name__}: {error}"

    @torch.no_grad()
    def score(self, parts: Iterable[Part], *, dtype: torch.dtype, eagerly: bool) -> Iterator[torch.Tensor]:
        """An answer for each part: float32 [ANSWER_HEAD + samples], the logits of the rank's own samples last.

        The vectors of the next part cross while the dense parts of one are computed. ``dtype``: of these vectors.
        Raises what the exchange raises, after which the group cannot go on.
        """
        before: _Begun | None = None
        for part in parts:
            begun = self._begin(part, dtype)
            if before is not None:
                yield self._finish(before, eagerly)
            before = begun
        if before is not None:
            yield self._finish(before, eagerly)

    def _begin(self, part: Part, dtype: torch.dtype) -> _Begun:
        self._failed = False
        started = time.perf_counter()
        pooled = self._look_up_sharded(part, dtype)
        looked_up = time.perf_counter()
        flight = self._exchange.start(pooled, part.rows)
        sent = time.perf_counter()
        replicated = self._look_up_replicated(part, dtype)
        return _Begun(
            part=part,
            flight=flight,
            replicated=replicated,
            failed=self._failed,
            lookup=looked_up - started + time.perf_counter() - sent,
            exchange=sent - looked_up,
        )

    def _finish(self, begun: _Begun, eagerly: bool) -> torch.Tensor:
        answer = np.zeros(ANSWER_HEAD + begun.part.samples, dtype=np.float32)
        self._failed = begun.failed
        started = time.perf_counter()
        self._exchange.wait(begun.flight)
        there = time.perf_counter()
        if begun.part.samples and not self._failed:
            self._interact(begun, answer, eagerly)
        head = AnswerHead(
            failed=float(self._failed),
            lookup=begun.lookup,
            exchange=begun.exchange + there - started,
            dense=time.perf_counter() - there,
            sent=begun.flight.sent_bytes,
        )
        answer[:ANSWER_HEAD] = head
        return torch.from_numpy(answer)

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

    def _interact(self, begun: _Begun, answer: Float32, eagerly: bool) -> None:
        part = begun.part
        try:
            pooled = self._assemble(begun.flight.received, begun.replicated)
            if part.mean_lengths is not None and self._mean_rows:
                self._divide(pooled, part)
            for context, (start, stop) in enumerate(part.spans, start=part.samples):
                pooled[start:stop] += pooled[context]
            answer[ANSWER_HEAD:] = self._scorer.interact(part.dense, pooled[: part.samples], eagerly=eagerly)
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

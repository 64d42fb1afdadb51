"""Step of a batch on one rank, the leader too: lookup, exchange, dense parts."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from dlrm_factory.batch import Embeddings, concatenate_embeddings, share_embeddings
from dlrm_factory.errors import DLRMError, LimitError, ModuleError, RequestError
from dlrm_factory.model.quantize import kernels_of
from dlrm_factory.ranks.exchange import Assembly, Exchange, Flight, pooled_dims
from dlrm_factory.ranks.group import RankGroup
from dlrm_factory.ranks.layout import Layout, layout_of
from dlrm_factory.ranks.lookup import RankLookup, Shards, shards_of
from dlrm_factory.ranks.parcels import Part
from dlrm_factory.ranks.sequences import RankSequences, SequencesUnderWay
from dlrm_factory.scorer import Scorer

__all__ = ["ANSWER_HEAD", "AnswerHead", "RankStep", "error_of", "reason_of", "telling_rank"]

Float32 = npt.NDArray[np.float32]

logger = logging.getLogger(__name__)


class AnswerHead(NamedTuple):
    """Start of an answer, float32; the logits of the rank's own samples follow.

    ``failed``: 0 or 1. ``lookup``, ``exchange``, ``dense``: seconds.
    """

    failed: float
    lookup: float
    exchange: float
    dense: float


ANSWER_HEAD = len(AnswerHead._fields)


def reason_of(error: Exception) -> str:
    """Kind and message of ``error``, as one rank tells it another; of a request's own error the path too."""
    path = f"{error.path}\n" if isinstance(error, RequestError) else ""
    return f"{type(error).__name__}: {path}{error}"


def error_of(reason: str) -> DLRMError | None:
    """The error that a module of the user's own led to, of what `reason_of` gave; None for any other."""
    kind, _, text = reason.partition(": ")
    if kind == ModuleError.__name__:
        return ModuleError(text)
    path, _, message = text.partition("\n")
    refusals = {each.__name__: each for each in (RequestError, LimitError)}
    return refusals[kind](message, path) if kind in refusals else None


def telling_rank(reasons: Mapping[int, str]) -> int:
    """The rank whose reason is told: the first that failed by itself, else the first whose module did."""
    return min(reasons, key=lambda rank: (error_of(reasons[rank]) is not None, rank))


@dataclass(frozen=True, kw_only=True)
class _Begun:
    """Rows whose vectors are under way; ``lookup`` and ``exchange``: seconds so far. ``sequences``: if it has any."""

    part: Part
    view: _View
    flight: Flight
    replicated: torch.Tensor
    sequences: SequencesUnderWay | None
    lookup: float
    exchange: float


@dataclass(frozen=True, kw_only=True)
class _Step:
    """A step under way: samples, and the contexts that they share."""

    samples: _Begun
    contexts: _Begun | None
    failed: bool


class _View:
    """All that depends on the features that rows have ids of.

    ``means``: columns of those that pool by the mean, and ``mean_dims`` how many each has.
    ``mean_rows``: places of their lengths among those of the
    replicated features (True), or among the others.
    """

    def __init__(
        self, shards: Shards, layout: Layout, features: Sequence[int], rank: int, scorer: Scorer
    ) -> None:
        self.layout = layout
        self.columns = [part.columns for part in layout.ranks]
        self.lookup = RankLookup(shards, layout, features, rank, scorer.declaration)
        self.assemble = Assembly(layout, features, scorer.declaration)
        apart, near = layout.lengths_apart, layout.replicated
        device, declaration = scorer.built.device, scorer.declaration
        self.sequences = (
            RankSequences(shards, layout, features, rank, declaration, device)
            if declaration.sequence_features
            else None
        )
        first = [0, *accumulate(pooled_dims(declaration))]
        spans = [range(first[features[mean]], first[features[mean] + 1]) for mean in layout.means]
        self.means = torch.tensor([c for span in spans for c in span], device=device, dtype=torch.int64)
        self.mean_dims = torch.tensor([len(span) for span in spans], device=device)
        self.mean_rows = [(f in near, near.index(f) if f in near else apart.index(f)) for f in layout.means]


class RankStep:
    """Scores parts of batches with a rank's part of the model.

    Errors of the lookup and of the dense parts are noted, and the rank takes part in the exchange all the same, with
    vectors of NaN: the other ranks wait for it.

    ``reason``: the first error since it was last cleared. ``exchanged``: bytes of pooled vectors that all ranks have
    sent one another.
    """

    def __init__(self, scorer: Scorer, group: RankGroup) -> None:
        self._scorer = scorer
        built = scorer.built
        self.layout = layout_of(built.plan, scorer.declaration)
        self._rank = group.rank
        self._exchange = Exchange(group, built.device)
        self._shards = shards_of(built.model)
        self._views: dict[bytes, _View] = {}
        self._failed = False
        self.reason = ""
        self.exchanged = 0
        for kernel in kernels_of(built.model):
            kernel.on_error = self.note

    def note(self, error: Exception) -> None:
        """Keep the first error, for the leader."""
        if not isinstance(error, RequestError):
            logger.error("A step failed on this rank", exc_info=error)
        self._failed = True
        self.reason = self.reason or reason_of(error)

    @torch.no_grad()
    def score(
        self, steps: Iterable[Sequence[Part]], *, dtype: torch.dtype, eagerly: bool
    ) -> Iterator[torch.Tensor]:
        """An answer for each step: float32 [ANSWER_HEAD + samples * C], the outputs of the rank's own samples last.

        Only one with outputs is sent: a rank that scores nothing has told the others of an error by its vectors.

        A step is the part of the samples and, if they share any, that of their contexts. The vectors of the next step
        cross while the dense parts of one are computed. ``dtype``: of these vectors. Raises what the exchange raises,
        after which the group cannot go on.
        """
        before: _Step | None = None
        for parts in steps:
            self._failed = False
            samples, *contexts = [self._begin(part, dtype) for part in parts]
            step = _Step(samples=samples, contexts=contexts[0] if contexts else None, failed=self._failed)
            if before is not None:
                yield self._finish(before, eagerly)
            before = step
        if before is not None:
            yield self._finish(before, eagerly)

    def _begin(self, part: Part, dtype: torch.dtype) -> _Begun:
        started = time.perf_counter()
        view = self._view(part.features)
        pooled = self._look_up_sharded(view, part, dtype)
        sequences = None if view.sequences is None else view.sequences.begin(part, dtype)
        if sequences is not None:
            self._look_up_sequences(sequences)
        looked_up = time.perf_counter()
        if sequences is None:
            flight = self._exchange.start(pooled, part.rows, view.columns)
        else:
            flight = self._exchange.start_flat(sequences.pack(pooled), sequences.sizes())
        rows = sum(part.rows)
        self.exchanged += dtype.itemsize * sum(
            columns * (rows - own) for columns, own in zip(view.columns, part.rows, strict=True)
        )
        sent = time.perf_counter()
        replicated = self._look_up_replicated(view, part, dtype, sequences)
        return _Begun(
            part=part,
            view=view,
            flight=flight,
            replicated=replicated,
            sequences=sequences,
            lookup=looked_up - started + time.perf_counter() - sent,
            exchange=sent - looked_up,
        )

    def _finish(self, step: _Step, eagerly: bool) -> torch.Tensor:
        samples = len(step.samples.part.dense)
        columns = self._scorer.declaration.output_columns
        answer = np.zeros(ANSWER_HEAD + samples * columns, dtype=np.float32)
        self._failed = step.failed
        both = [step.samples] if step.contexts is None else [step.samples, step.contexts]
        started = time.perf_counter()
        for begun in both:
            self._exchange.wait(begun.flight)
        there = time.perf_counter()
        if samples and not self._failed:
            self._interact(step, answer, eagerly)
        answer[:ANSWER_HEAD] = AnswerHead(
            failed=float(self._failed),
            lookup=sum(begun.lookup for begun in both),
            exchange=sum(begun.exchange for begun in both) + there - started,
            dense=time.perf_counter() - there,
        )
        return torch.from_numpy(answer)

    def _view(self, features: bytes) -> _View:
        if features not in self._views:
            count = len(self._scorer.declaration.sparse_features)
            chosen = list(range(count))
            if features:
                bits = np.unpackbits(np.frombuffer(features, dtype=np.uint8), count=count)
                chosen = np.flatnonzero(bits).tolist()
            layout = self.layout.only(chosen) if features else self.layout
            self._views[features] = _View(self._shards, layout, chosen, self._rank, self._scorer)
        return self._views[features]

    def _look_up_sharded(self, view: _View, part: Part, dtype: torch.dtype) -> torch.Tensor:
        rows = sum(part.rows)
        try:
            return view.lookup.sharded(part.sharded, rows, dtype)
        except Exception as error:
            self.note(error)
            return torch.full(
                (rows, view.columns[self._rank]), torch.nan, dtype=dtype, device=part.dense.device
            )

    def _look_up_sequences(self, sequences: SequencesUnderWay) -> None:
        try:
            sequences.look_up()
        except Exception as error:
            self.note(error)
            sequences.give_up()

    def _look_up_replicated(
        self, view: _View, part: Part, dtype: torch.dtype, sequences: SequencesUnderWay | None
    ) -> torch.Tensor:
        rows = part.rows[self._rank]
        try:
            if sequences is not None:
                sequences.look_up_replicated()
            return view.lookup.replicated(part.replicated, rows, dtype)
        except Exception as error:
            self.note(error)
            return torch.empty(rows, 0, dtype=dtype, device=part.dense.device)

    def _interact(self, step: _Step, answer: Float32, eagerly: bool) -> None:
        part = step.samples.part
        try:
            found = _embeddings(step.samples)
            if step.contexts is not None and part.spans:
                found = _with_contexts(found, _embeddings(step.contexts), part.spans)
            outputs = self._scorer.interact(part.dense, found, eagerly=eagerly)
            answer[ANSWER_HEAD:] = outputs.reshape(-1)
        except Exception as error:
            self.note(error)


def _with_contexts(found: Embeddings, contexts: Embeddings, spans: Sequence[Sequence[int]]) -> Embeddings:
    """Embeddings of samples with those of the contexts that they share."""
    if found.sequences:
        return share_embeddings(concatenate_embeddings([found, contexts]), spans)
    for context, (start, stop) in enumerate(spans):
        found.pooled[start:stop] += contexts.pooled[context]
    return found


def _embeddings(begun: _Begun) -> Embeddings:
    """Vectors of the own rows."""
    received, sequences = begun.flight.received, begun.sequences
    if sequences is None:
        return Embeddings(_pooled(begun, received))
    return sequences.embeddings(_pooled(begun, sequences.pooled(received)), received)


def _pooled(begun: _Begun, received: Sequence[torch.Tensor]) -> torch.Tensor:
    """Vectors [rows, W] of ``received`` [rows, columns] of each rank; zeros for features that no row has ids of."""
    part, view = begun.part, begun.view
    pooled = view.assemble(received, begun.replicated)
    if part.lengths_apart is not None and view.mean_rows:
        own = part.replicated.lengths
        assert own is not None
        lengths = torch.stack([(own if near else part.lengths_apart)[row] for near, row in view.mean_rows])
        # Sums → means: by the whole bag's length, wherever its rows lie.
        factors = lengths.clamp(min=1).float().reciprocal().repeat_interleave(view.mean_dims, dim=0).T
        pooled[:, view.means] = (pooled[:, view.means] * factors).to(pooled.dtype)
    return pooled

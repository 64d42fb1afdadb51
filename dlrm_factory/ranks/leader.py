"""`RankedScorer`: a scorer whose model lies in several processes."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from dlrm_factory.batch import FeatureBatch, SharedContext, without_empty_contexts
from dlrm_factory.compiled import Precision
from dlrm_factory.compiled.sizes import SIZES
from dlrm_factory.config.declaration import DLRMDeclaration
from dlrm_factory.errors import GroupError, ModuleError, RankError, RequestError
from dlrm_factory.factory import BuiltDLRM
from dlrm_factory.features import Vocabularies
from dlrm_factory.ranks.follower import (
    BACKGROUND,
    BFLOAT16,
    BUILD,
    EAGERLY,
    MORE,
    REASON_BYTES,
    compile_rank,
    write_reason,
)
from dlrm_factory.ranks.group import RankGroup
from dlrm_factory.ranks.layout import Layout, RankLayout
from dlrm_factory.ranks.messages import Command, Expected, Head, Messages
from dlrm_factory.ranks.parcels import Part
from dlrm_factory.ranks.routing import Router
from dlrm_factory.ranks.slices import arrange, check_batch, cut, even_sizes
from dlrm_factory.ranks.step import ANSWER_HEAD, AnswerHead, RankStep, error_of, telling_rank
from dlrm_factory.scorer import Scorer

__all__ = ["MAX_SLICE", "MIN_SPREAD", "RankedScorer", "StepTimes", "end_process_soon"]

logger = logging.getLogger(__name__)

Float32 = npt.NDArray[np.float32]

# Of fewer samples, dense features to each rank, and logits back, take longer than the leader's dense parts.
MIN_SPREAD = 128
MAX_SLICE = SIZES[-1]
_ANSWERS_LEAVE_S = 1.0
# What the user's own module leads to is the same error on whatever rank.
_OF_MODULES = (ModuleError, RequestError)
_TEMPORARY_FAILURE = 75  # EX_TEMPFAIL of sysexits.h


@dataclass(frozen=True, kw_only=True)
class StepTimes:
    """Seconds of the last batch's parts, and its bytes. Those of a batch of several steps are the steps' sums.

    Fields:
        scatter: cutting, packing and sending.
        lookup, exchange, dense: the slowest rank's lookups, its wait for other ranks' vectors, and its dense parts.
        gather: until all answers were there, after the leader had its own.
        sent: bytes that left any rank for another.
    """

    scatter: float
    lookup: float
    exchange: float
    dense: float
    gather: float
    sent: int


@dataclass(frozen=True)
class _UnderWay:
    """A step that was sent: its answers, the seconds that this took, and the bytes.

    ``crossing``: numbers of sequences' vectors that ranks send one another.
    """

    expected: Expected
    scatter: float
    sent_bytes: int
    crossing: int


def end_process_soon(error: GroupError) -> None:
    """End this process in a second, when answers have left it, so that its supervisor starts the group anew.

    Without Python's way out, which would wait for a collective that never ends.
    """
    logger.critical("The group of ranks is lost, so this process ends: %s", error)
    timer = threading.Timer(_ANSWERS_LEAVE_S, os._exit, args=(_TEMPORARY_FAILURE,))
    timer.daemon = True
    timer.start()


def _step_times(
    under_way: Sequence[_UnderWay],
    answers: Sequence[Mapping[int, torch.Tensor]],
    gather: float,
    exchanged: int,
) -> StepTimes:
    """``exchanged``: bytes of vectors that ranks sent one another."""
    heads = [[AnswerHead(*answer[:ANSWER_HEAD].tolist()) for answer in step.values()] for step in answers]
    sent = exchanged + sum(step.sent_bytes for step in under_way)
    return StepTimes(
        scatter=sum(step.scatter for step in under_way),
        lookup=sum(max(head.lookup for head in step) for step in heads),
        exchange=sum(max(head.exchange for head in step) for step in heads),
        dense=sum(max(head.dense for head in step) for step in heads),
        gather=gather,
        sent=sent + sum(4 * answer.numel() for step in answers for rank, answer in step.items() if rank),
    )


class RankedScorer:
    """Scores batches with the ranks of a group, as `Scorer` does alone. Only rank 0 has one; the others `follow`."""

    def __init__(
        self,
        scorer: Scorer,
        group: RankGroup,
        *,
        on_loss: Callable[[GroupError], None] = end_process_soon,
        min_spread: int = MIN_SPREAD,
    ) -> None:
        """Wait until every rank has loaded its part and follows.

        Args:
            scorer: of this rank's part of the model.
            on_loss: called once, when the group is lost.
            min_spread: samples from which on every rank scores its slice; the dense parts of fewer are the leader's.
        """
        self.scorer = scorer
        self.times: StepTimes | None = None
        self._group = group
        self.min_spread = min_spread
        self._messages = Messages(group, scorer.built.device)
        self._step = RankStep(scorer, group)
        self._router = Router(self._step.layout, scorer.declaration)
        self._on_loss = on_loss
        self._lost: GroupError | None = None
        self._lock = threading.Lock()
        group.begin()

    @property
    def declaration(self) -> DLRMDeclaration:
        return self.scorer.declaration

    @property
    def built(self) -> BuiltDLRM:
        """The leader's part of the model, with the whole plan."""
        return self.scorer.built

    @property
    def vocabularies(self) -> Vocabularies | None:
        return self.scorer.vocabularies

    @property
    def engine(self) -> str:
        """What the leader scores with now: ``eager`` or ``compiled``."""
        return self.scorer.engine

    @property
    def eager_reason(self) -> str | None:
        """Reason why the leader must score eagerly; None if there is none."""
        return self.scorer.eager_reason

    @property
    def precision(self) -> Precision:
        return self.scorer.precision

    def logits(self, batch: FeatureBatch, shared: SharedContext | None = None) -> Float32:
        """Logits of the first probability, float32 [B]. B may be 0. Raises as `outputs` does."""
        return self.outputs(batch, shared)[:, self.scorer.first_column]

    def outputs(self, batch: FeatureBatch, shared: SharedContext | None = None) -> Float32:
        """All outputs' columns, float32 [B, C], as `Scorer.outputs`. B may be 0.

        Raises:
            ValueError: the batch is not of the declared model; nothing was sent.
            ModuleError, RequestError: the user's own module failed, or refused it, on some rank. The group goes on.
            RankError: a rank could not score it. The group goes on.
            GroupError: a rank is gone or late. From now on every call raises it.
        """
        return self._score(batch, shared, flags=0)

    def reference_logits(self, batch: FeatureBatch) -> Float32:
        """Logits of the first probability with eager dense parts: float32 [B]. Raises as `outputs` does."""
        return self._score(batch, None, flags=EAGERLY)[:, self.scorer.first_column]

    def compile(
        self,
        folder: Path,
        *,
        background: bool = False,
        build: bool = True,
        probes: Sequence[FeatureBatch] = (),
    ) -> None:
        """Take compiled dense parts into use on all ranks; see `Scorer.compile`.

        Followers take their own folder. RankError if some rank must use compiled code and cannot.
        """
        for batch in probes:
            check_batch(batch, self.declaration)
        flags = BACKGROUND * background | BUILD * build
        with self._in_group():
            for batch in probes:
                self._send_whole(batch)
            head = Head(command=Command.COMPILE, flags=flags)
            expected = self._messages.expect(self._from_all(ANSWER_HEAD), patiently=True)
            self._messages.tell(head)
            own = compile_rank(self.scorer, self._step, head, folder, list(probes))
            self._check([self._messages.collect(expected, own)])

    def lose(self, error: GroupError) -> None:
        """Count the group as lost, if it is not yet: every further call raises ``error``. For signal handlers too."""
        if self._lost is None:
            self._lost = error
            self._on_loss(error)

    def lose_between(self, error: GroupError, *, within_s: float) -> None:
        """`lose` the group once the batch in hand has ended, or has not ``within_s`` seconds. For other threads."""
        free = self._lock.acquire(timeout=within_s)
        try:
            self.lose(error)
        finally:
            if free:
                self._lock.release()

    def stop(self) -> None:
        """Let the followers end. Nothing can be scored afterwards."""
        if self._lost is None:
            with self._in_group():
                self._messages.tell(Head(command=Command.STOP))
            self._lost = GroupError("the group of ranks was stopped")

    def _score(self, batch: FeatureBatch, shared: SharedContext | None, *, flags: int) -> Float32:
        if len(batch) == 0:
            return np.empty((0, self.declaration.output_columns), dtype=np.float32)
        check_batch(batch, self.declaration)
        shared = without_empty_contexts(shared)
        if shared is not None:
            check_batch(shared.bags, self.declaration)
        if not flags & EAGERLY and self.scorer.pooled_dtype is torch.bfloat16:
            flags |= BFLOAT16
        # Vectors of larger slices would leave the CPU's cache before the dense parts read them.
        pieces = list(cut(batch, shared, MAX_SLICE * self._group.size))
        with self._in_group():
            under_way: list[_UnderWay] = []
            exchanged = self._step.exchanged
            dtype = torch.bfloat16 if flags & BFLOAT16 else torch.float32
            steps = self._send_steps(pieces, flags, under_way)
            own = list(self._step.score(steps, dtype=dtype, eagerly=bool(flags & EAGERLY)))
            done = time.perf_counter()
            answers = [self._messages.collect(s.expected, a) for s, a in zip(under_way, own, strict=True)]
            self._messages.flush()
            vectors = self._step.exchanged - exchanged + dtype.itemsize * sum(s.crossing for s in under_way)
            self.times = _step_times(under_way, answers, time.perf_counter() - done, vectors)
            outputs = torch.cat([a[ANSWER_HEAD:] for step in answers for a in step.values()]).numpy()
            # Ranks that scored nothing have answered nothing.
            silent = any(len(step) < self._group.size for step in answers)
            self._check(answers, doubtful=silent and bool(np.isnan(outputs).any()))
        return outputs.reshape(len(batch), self.declaration.output_columns)

    def _send_steps(
        self,
        pieces: Sequence[tuple[FeatureBatch, SharedContext | None]],
        flags: int,
        under_way: list[_UnderWay],
    ) -> Iterator[list[Part]]:
        """The leader's own parts of each piece, when the others' are sent. Adds to ``under_way``.

        Ranks that have nothing to look up and to score are left alone.
        """
        for place, (batch, shared) in enumerate(pieces, start=1):
            started = time.perf_counter()
            sizes = self.sizes(len(batch))
            samples, contexts = arrange(batch, shared, sizes)
            routed = [self._router.route(samples)]
            if contexts is not None:
                routed = [self._router.route_used(samples), self._router.route_used(contexts)]
            to: Sequence[int] = range(1, self._group.size)
            if len(pieces) == 1:  # else ranks wait for the next step of the batch
                to = [rank for rank in to if sizes[rank] or self._step.layout.ranks[rank].streams]
            more = MORE * (place < len(pieces))
            head = Head(command=Command.SCORE, flags=flags | more)
            parts = self._messages.send(head, zip(*routed, strict=True), to=to)
            columns = self.declaration.output_columns
            answers = {rank: ANSWER_HEAD + sizes[rank] * columns for rank in to if sizes[rank]}
            expected = self._messages.expect(answers)
            taken = time.perf_counter() - started
            crossing = self._messages.crossing
            under_way.append(_UnderWay(expected, taken, self._messages.sent_bytes, crossing))
            yield parts

    def sizes(self, samples: int) -> list[int]:
        """Samples of a step that each rank scores: slices, or all by the leader. Not more than `MAX_SLICE` a rank."""
        ranks = self._group.size
        return even_sizes(samples, ranks) if samples >= self.min_spread else [samples, *[0] * (ranks - 1)]

    def _from_all(self, size: int) -> dict[int, int]:
        return dict.fromkeys(range(1, self._group.size), size)

    def _send_whole(self, batch: FeatureBatch) -> None:
        """Let every rank keep ``batch``, all of it, as if all its tables were replicated."""
        layout = Layout(ranks=(RankLayout((), ()),), replicated=tuple(range(len(batch.lengths))), means=())
        samples, _ = arrange(batch, None, [len(batch)])
        (parcel,) = Router(layout, self.declaration, as_given=True).route(samples)
        self._messages.send(Head(command=Command.PROBE), [[parcel]] * self._group.size)
        self._messages.flush()

    def _check(self, steps: Sequence[Mapping[int, torch.Tensor]], *, doubtful: bool = False) -> None:
        """Raise for a rank that failed in a step: its module's error or refusal as such, else RankError with its text.

        ``doubtful``: one may have failed that did not answer.
        """
        failed = {rank for answers in steps for rank, answer in answers.items() if answer[0]}
        if not failed and not doubtful:
            return
        expected = self._messages.expect(self._from_all(REASON_BYTES), torch.uint8)
        self._messages.tell(Head(command=Command.REASON))
        reasons = self._messages.collect(expected, write_reason(self._step))
        texts = {
            rank: bytes(reason.numpy()).rstrip(b"\0").decode("utf-8", "replace")
            for rank, reason in reasons.items()
        }
        failed |= {rank for rank, text in texts.items() if text}
        if not failed:
            return
        rank = telling_rank({rank: texts[rank] for rank in failed})
        error = error_of(texts[rank])
        if error is not None:
            raise error
        others = f" (and {len(failed) - 1} other ranks)" if len(failed) > 1 else ""
        raise RankError(f"rank {rank} of {self._group.size}{others} failed: {texts[rank]}")

    @contextlib.contextmanager
    def _in_group(self) -> Iterator[None]:
        """One step at a time; whatever else than an error on a rank ends it ends the group."""
        with self._lock:
            if self._lost is not None:
                raise self._lost
            try:
                yield
            except (RankError, *_OF_MODULES):
                raise
            except Exception as error:
                lost = GroupError(
                    f"a rank of the group of {self._group.size} is gone, or did not answer within "
                    f"{self._group.timeout_s:g} s; send the request again ({error})"
                )
                self.lose(lost)
                raise self._lost or lost from error

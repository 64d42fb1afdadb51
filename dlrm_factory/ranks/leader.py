"""`RankedScorer`: a scorer whose model lies in several processes."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from dlrm_factory.batch import FeatureBatch, SharedContext
from dlrm_factory.compiled import Precision
from dlrm_factory.config.declaration import DLRMDeclaration
from dlrm_factory.errors import GroupError, RankError
from dlrm_factory.factory import BuiltDLRM
from dlrm_factory.features import Vocabularies
from dlrm_factory.ranks.follower import BACKGROUND, BUILD, EAGERLY, compile_rank, write_reason
from dlrm_factory.ranks.group import RankGroup
from dlrm_factory.ranks.messages import Command, Head, Messages
from dlrm_factory.ranks.slices import Slice, check_batch, cut
from dlrm_factory.ranks.step import ANSWER_HEAD, FAILED, LOOKUP_S, TOTAL_S, RankStep
from dlrm_factory.scorer import Scorer

__all__ = ["RankedScorer", "StepTimes", "end_process_soon"]

logger = logging.getLogger(__name__)

Float32 = npt.NDArray[np.float32]

_ANSWERS_LEAVE_S = 1.0
_TEMPORARY_FAILURE = 75  # EX_TEMPFAIL of sysexits.h


@dataclass(frozen=True, kw_only=True)
class StepTimes:
    """Seconds of the last batch's parts, and its bytes.

    Fields:
        scatter: cutting, packing and sending.
        lookup: the slowest rank's lookup, with TorchRec's exchange.
        dense: the slowest rank's dense parts.
        gather: until all answers were there, after the leader had its own.
        scattered, gathered: bytes that left and reached the leader by scatter and gather.
    """

    scatter: float
    lookup: float
    dense: float
    gather: float
    scattered: int
    gathered: int


def end_process_soon(error: GroupError) -> None:
    """End this process in a second, when answers have left it, so that its supervisor starts the group anew.

    Without Python's way out, which would wait for a collective that never ends.
    """
    logger.critical("The group of ranks is lost, so this process ends: %s", error)
    timer = threading.Timer(_ANSWERS_LEAVE_S, os._exit, args=(_TEMPORARY_FAILURE,))
    timer.daemon = True
    timer.start()


class RankedScorer:
    """Scores batches with the ranks of a group, as `Scorer` does alone. Only rank 0 has one; the others `follow`."""

    def __init__(
        self, scorer: Scorer, group: RankGroup, *, on_loss: Callable[[GroupError], None] = end_process_soon
    ) -> None:
        """Wait until every rank has loaded its part and follows.

        ``scorer``: of this rank's part of the model. ``on_loss``: called once, when the group is lost.
        """
        self.scorer = scorer
        self.times: StepTimes | None = None
        self._group = group
        self._messages = Messages(group, scorer.declaration)
        self._step = RankStep(scorer)
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
    def precision(self) -> Precision:
        return self.scorer.precision

    def logits(self, batch: FeatureBatch, shared: SharedContext | None = None) -> Float32:
        """Click logits, float32 [B], as `Scorer.logits`. B may be 0.

        Raises:
            ValueError: the batch is not of the declared model; nothing was sent.
            RankError: a rank could not score it. The group goes on.
            GroupError: a rank is gone or late. From now on every call raises it.
        """
        return self._score(batch, shared, flags=0)

    def reference_logits(self, batch: FeatureBatch) -> Float32:
        """Click logits with eager dense parts: float32 [B]. Raises as `logits` does."""
        return self._score(batch, None, flags=EAGERLY)

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
                whole = Slice(batch=batch, spans=np.empty((0, 2), dtype=np.int32))
                self._messages.send(Head(command=Command.PROBE), [whole] * self._group.size)
            head = Head(command=Command.COMPILE, flags=flags)
            self._messages.send(head)
            own = compile_rank(self.scorer, self._step, head, folder, list(probes))
            self._check(self._messages.gather(own, patiently=True))

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
                self._messages.send(Head(command=Command.STOP))
            self._lost = GroupError("the group of ranks was stopped")

    def _score(self, batch: FeatureBatch, shared: SharedContext | None, *, flags: int) -> Float32:
        size = len(batch)
        if size == 0:
            return np.empty(0, dtype=np.float32)
        check_batch(batch, self.declaration)
        if shared is not None:
            check_batch(shared.bags, self.declaration)
        started = time.perf_counter()
        slices = list(cut(batch, shared, self._group.size))
        with self._in_group():
            largest = slices[0].samples
            self._messages.send(Head(command=Command.SCORE, flags=flags, answer=largest), slices)
            sent = time.perf_counter()
            own = self._step.score(slices[0], largest, eagerly=bool(flags & EAGERLY))
            done = time.perf_counter()
            answers = self._messages.gather(own)
            self._note_times(sent - started, time.perf_counter() - done, answers)
            self._check(answers)
        logits = [
            answer[ANSWER_HEAD : ANSWER_HEAD + piece.samples]
            for answer, piece in zip(answers, slices, strict=True)
        ]
        return torch.cat(logits).numpy()

    def _note_times(self, scatter: float, gather: float, answers: list[torch.Tensor]) -> None:
        self.times = StepTimes(
            scatter=scatter,
            lookup=max(float(answer[LOOKUP_S]) for answer in answers),
            dense=max(float(answer[TOTAL_S] - answer[LOOKUP_S]) for answer in answers),
            gather=gather,
            scattered=self._messages.sent_bytes,
            gathered=sum(4 * answer.numel() for answer in answers[1:]),
        )

    def _check(self, answers: list[torch.Tensor]) -> None:
        """RankError if a rank failed, with what it says."""
        failed = [rank for rank, answer in enumerate(answers) if answer[FAILED]]
        if not failed:
            return
        self._messages.send(Head(command=Command.REASON))
        reasons = self._messages.gather(write_reason(self._step))
        texts = {
            rank: bytes(reasons[rank].numpy()).rstrip(b"\0").decode("utf-8", "replace") for rank in failed
        }
        rank = failed[0]
        others = f" (and {len(failed) - 1} other ranks)" if len(failed) > 1 else ""
        raise RankError(f"rank {rank} of {self._group.size}{others} failed: {texts[rank]}")

    @contextlib.contextmanager
    def _in_group(self) -> Iterator[None]:
        """One step at a time; whatever else than a rank's own error ends it ends the group."""
        with self._lock:
            if self._lost is not None:
                raise self._lost
            try:
                yield
            except RankError:
                raise
            except Exception as error:
                lost = GroupError(
                    f"a rank of the group of {self._group.size} is gone, or did not answer within "
                    f"{self._group.timeout_s:g} s; send the request again ({error})"
                )
                self.lose(lost)
                raise self._lost or lost from error

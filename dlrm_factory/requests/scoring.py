"""Samples that were read → one score each, as many at once as is fast."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from dlrm_factory.batch import FeatureBatch, SharedContext, concatenate, join_contexts
from dlrm_factory.config import DLRMDeclaration
from dlrm_factory.errors import GroupError
from dlrm_factory.requests.answers import Answer, answer_group_lost, answer_internal_error, answered_scores

__all__ = ["MAX_TOGETHER", "LogitScorer", "Samples", "Scores", "score"]

logger = logging.getLogger(__name__)

# Beyond so many samples scoring takes as long a sample as before, and joining them more.
MAX_TOGETHER = 512

Float32 = npt.NDArray[np.float32]


class LogitScorer(Protocol):
    """A model, as far as the service needs it."""

    @property
    def declaration(self) -> DLRMDeclaration: ...

    def outputs(self, batch: FeatureBatch, shared: SharedContext | None = None) -> Float32:
        """All outputs' columns, float32 [B, C]. Bags in ``shared`` belong to several samples."""
        ...


class Samples(Protocol):
    """Samples of one request, or of several of one sample each."""

    @property
    def batch(self) -> FeatureBatch: ...

    @property
    def context(self) -> FeatureBatch | None:
        """One sample whose bags all of ``batch`` share."""
        ...

    @property
    def as_logit(self) -> Sequence[bool] | bool:
        """True for a sample whose score is its logit; one for all, or one each."""
        ...


class Scores(NamedTuple):
    """Scores of some samples, in order.

    Fields:
        numbers: one a sample, whose JSON is short; of no meaning where it is not finite.
        logits: float32 [B], by which samples are ranked: they tell samples apart whose probabilities are equal.
        finite: bool [B], True where the number is; None where all are.
    """

    numbers: list[float]
    logits: Float32
    finite: npt.NDArray[np.bool_] | None


def score(read: Sequence[Samples], scorer: LogitScorer) -> Iterator[Scores | Answer]:
    """Scores of each of ``read``, in order; where the model could not score, after a log line, the answer that says so.

    At most `MAX_TOGETHER` samples are scored at once, but where one of ``read`` has more.
    """
    for group in _groups(read):
        yield from _score_group(group, scorer)


def _groups(read: Sequence[Samples]) -> Iterator[list[Samples]]:
    group: list[Samples] = []
    samples = 0
    for each in read:
        if group and samples + len(each.batch) > MAX_TOGETHER:
            yield group
            group, samples = [], 0
        group.append(each)
        samples += len(each.batch)
    if group:
        yield group


def _score_group(group: Sequence[Samples], scorer: LogitScorer) -> list[Scores | Answer]:
    try:
        logits, as_logit = _logits(group, scorer), _as_logit(group)
        # The probability of an infinite logit is 0 or 1.
        sound = (
            ~np.isnan(logits) if as_logit is None else np.isfinite(logits) | ~(as_logit | np.isnan(logits))
        )
        finite = None if np.count_nonzero(sound) == len(sound) else sound
        if finite is not None:
            logits = np.where(finite, logits, np.float32(0))
        numbers = answered_scores(logits, as_logit)
    except GroupError as error:
        logger.error("%d samples could not be scored: %s", sum(len(each.batch) for each in group), error)
        return [answer_group_lost()] * len(group)
    except Exception:
        logger.exception("%d samples could not be scored", sum(len(each.batch) for each in group))
        return [answer_internal_error("the model could not score; the server's log says why")] * len(group)
    found: list[Scores | Answer] = []
    start = 0
    for each in group:
        stop = start + len(each.batch)
        own = None if finite is None else finite[start:stop]
        found.append(Scores(numbers[start:stop], logits[start:stop], own))
        start = stop
    return found


def _logits(group: Sequence[Samples], scorer: LogitScorer) -> Float32:
    """Float32 [samples of all]."""
    batches, contexts = [each.batch for each in group], [each.context for each in group]
    batch = concatenate(batches)
    if all(context is None for context in contexts):
        outputs = scorer.outputs(batch)
    else:
        outputs = scorer.outputs(batch, join_contexts(batches, contexts))
    if outputs.shape != (len(batch), scorer.declaration.output_columns):
        raise ValueError(f"the scorer gave shape {outputs.shape} for {len(batch)} samples")
    return outputs[:, 0]


def _as_logit(group: Sequence[Samples]) -> npt.NDArray[np.bool_] | None:
    """Bool [samples of all], True for one whose score is its logit; None if none is."""
    wanted = [each.as_logit for each in group]
    if not any(each if isinstance(each, bool) else True in each for each in wanted):
        return None
    return np.concatenate(
        [np.broadcast_to(each, len(of.batch)) for each, of in zip(wanted, group, strict=True)]
    )

"""Requests that were read → one score a sample → one answer a request, as many at once as is fast."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from dlrm_factory.batch import FeatureBatch, SharedContext, concatenate, join_contexts
from dlrm_factory.config import DLRMDeclaration
from dlrm_factory.errors import GroupError
from dlrm_factory.requests.answers import Answer, answer_group_lost, answer_internal_error, shortest
from dlrm_factory.scorer import probabilities

__all__ = ["MOST_TOGETHER", "LogitScorer", "Part", "score_parts"]

logger = logging.getLogger(__name__)

# Beyond so many samples scoring takes as long a sample as before, and joining them more.
MOST_TOGETHER = 512

Float32 = npt.NDArray[np.float32]
Finite = npt.NDArray[np.bool_] | None  # None where all are


class LogitScorer(Protocol):
    """What the service needs of a scorer."""

    @property
    def declaration(self) -> DLRMDeclaration: ...

    def logits(self, batch: FeatureBatch, shared: SharedContext | None = None) -> Float32:
        """Float32 [B]. Bags in ``shared`` belong to several samples."""
        ...


class Part(NamedTuple):
    """Samples of one request, or of several of one sample each.

    Fields:
        places: of the requests.
        batch: their samples.
        context: one sample whose bags all of ``batch`` share.
        as_logit: whether a sample's score is its logit; one for all, or one each.
        answers: (scores, which of them are finite) → the requests' answers. A score that is not finite comes as 0.
    """

    places: Sequence[int]
    batch: FeatureBatch
    context: FeatureBatch | None
    as_logit: Sequence[bool] | bool
    answers: Callable[[list[float], Finite], list[Answer]]


def score_parts(parts: Sequence[Part], scorer: LogitScorer) -> Iterator[tuple[int, Answer]]:
    """(place, answer) of each request. At most `MOST_TOGETHER` samples are scored at once, but for a part of more."""
    for group in _groups(parts):
        places = [place for part in group for place in part.places]
        yield from zip(places, _answers(group, scorer), strict=True)


def _groups(parts: Sequence[Part]) -> Iterator[list[Part]]:
    group: list[Part] = []
    samples = 0
    for part in parts:
        if group and samples + len(part.batch) > MOST_TOGETHER:
            yield group
            group, samples = [], 0
        group.append(part)
        samples += len(part.batch)
    if group:
        yield group


def _answers(group: Sequence[Part], scorer: LogitScorer) -> list[Answer]:
    try:
        scores = _score(group, scorer)
        sound = np.isfinite(scores)
        finite: Finite = None if np.count_nonzero(sound) == len(sound) else sound
        if finite is not None:
            scores = np.where(finite, scores, np.float32(0))
        numbers = shortest(scores)
        answers: list[Answer] = []
        start = 0
        for part in group:
            stop = start + len(part.batch)
            answers += part.answers(numbers[start:stop], None if finite is None else finite[start:stop])
            start = stop
        return answers
    except GroupError as error:
        logger.error("A batch of requests could not be scored: %s", error)
        return [answer_group_lost()] * sum(len(part.places) for part in group)
    except Exception:
        requests = sum(len(part.places) for part in group)
        logger.exception("A batch of %d requests could not be scored", requests)
        return [answer_internal_error("the model could not score; the server's log says why")] * requests


def _score(group: Sequence[Part], scorer: LogitScorer) -> Float32:
    """Float32 [samples of all], each as its request's output asks."""
    batches, contexts = [part.batch for part in group], [part.context for part in group]
    batch = concatenate(batches)
    if all(context is None for context in contexts):
        logits = scorer.logits(batch)
    else:
        logits = scorer.logits(batch, join_contexts(batches, contexts))
    if logits.shape != (len(batch),):
        raise ValueError(f"the scorer gave shape {logits.shape} for {len(batch)} samples")
    chances = probabilities(logits)
    if not any(part.as_logit if isinstance(part.as_logit, bool) else True in part.as_logit for part in group):
        return chances
    as_logit = np.concatenate([np.broadcast_to(part.as_logit, len(part.batch)) for part in group])
    return np.where(as_logit, logits, chances)

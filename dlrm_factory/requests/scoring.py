"""Samples that were read → their outputs, as many at once as is fast."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from dlrm_factory.batch import FeatureBatch, SharedContext, concatenate, join_contexts
from dlrm_factory.config import DLRMDeclaration
from dlrm_factory.config import Output as DeclaredOutput
from dlrm_factory.errors import GroupError
from dlrm_factory.requests.answers import Answer, answer_group_lost, answer_internal_error
from dlrm_factory.requests.formats.outputs import Scores
from dlrm_factory.requests.numbers import answered_scores

__all__ = ["MAX_TOGETHER", "OutputScorer", "Samples", "score"]

logger = logging.getLogger(__name__)

# Beyond so many samples scoring takes as long a sample as before, and joining them more.
MAX_TOGETHER = 512

Float32 = npt.NDArray[np.float32]
Masks = npt.NDArray[np.bool_]


class OutputScorer(Protocol):
    """A model, as far as the service needs it: what gives all outputs of a batch."""

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
        """True for a sample of whose probabilities a logit is given; one for all, or one each."""
        ...

    @property
    def outputs(self) -> Sequence[str]:
        """Names of the outputs that are needed, at least one."""
        ...


def score(read: Sequence[Samples], scorer: OutputScorer) -> Iterator[Scores | Answer]:
    """Outputs of each of ``read``, in order; where the model could not score, after a log line, the answer saying so.

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


def _score_group(group: Sequence[Samples], scorer: OutputScorer) -> list[Scores | Answer]:
    try:
        outputs, as_logit = _outputs(group, scorer), _as_logit(group)
        declared = scorer.declaration.all_outputs
        if len(declared) == 1:
            found = {declared[0].name: _column(outputs, declared[0], as_logit)}
        else:
            found = {
                output.name: _column(outputs[:, scorer.declaration.columns_of(output.name)], output, as_logit)
                for output in declared
                if any(output.name in each.outputs for each in group)
            }
    except GroupError as error:
        logger.error("%d samples could not be scored: %s", sum(len(each.batch) for each in group), error)
        return [answer_group_lost()] * len(group)
    except Exception:
        logger.exception("%d samples could not be scored", sum(len(each.batch) for each in group))
        return [answer_internal_error("the model could not score; the server's log says why")] * len(group)
    scores: list[Scores | Answer] = []
    start = 0
    for each in group:
        stop = start + len(each.batch)
        scores.append(_part([(name, found[name]) for name in each.outputs], start, stop))
        start = stop
    return scores


class _Column(NamedTuple):
    """One output of all samples of a group.

    Fields:
        raw: float32 [B], or [B, size] of a vector, 0 where it is not finite.
        numbers: of answers; None of a vector.
        finite: bool [B]; None where all are.
    """

    raw: Float32
    numbers: list[float] | None
    finite: Masks | None


def _column(raw: Float32, output: DeclaredOutput, as_logit: Masks | None) -> _Column:
    """``raw``: float32 [B, columns of ``output``]. ``as_logit``: bool [B], None if for no sample."""
    if output.kind == "vector":
        sound: Masks = np.asarray(np.isfinite(raw).all(axis=1))
    else:
        raw = raw[:, 0]
        # The probability of an infinite logit is 0 or 1.
        nan: Masks = np.isnan(raw)
        sound = ~nan if as_logit is None else np.isfinite(raw) | ~(as_logit | nan)
    finite = None if np.count_nonzero(sound) == len(sound) else sound
    if finite is not None:
        raw = np.where(finite if output.kind != "vector" else finite[:, None], raw, np.float32(0))
    return _Column(raw, None if output.kind == "vector" else answered_scores(raw, as_logit), finite)


def _part(columns: Sequence[tuple[str, _Column]], start: int, stop: int) -> Scores:
    """``columns`` of some samples."""
    if len(columns) == 1:
        ((name, (raw, its_numbers, its_finite)),) = columns
        raw, own = raw[start:stop], None if its_finite is None else its_finite[start:stop]
        if its_numbers is None:
            return Scores({}, {}, {name: raw}, own)
        return Scores({name: its_numbers[start:stop]}, {name: raw}, {}, own)
    finite: Masks | None = None
    numbers: dict[str, list[float]] = {}
    logits: dict[str, Float32] = {}
    vectors: dict[str, Float32] = {}
    for name, column in columns:
        if column.numbers is None:
            vectors[name] = column.raw[start:stop]
        else:
            numbers[name], logits[name] = column.numbers[start:stop], column.raw[start:stop]
        if column.finite is not None:
            own = column.finite[start:stop]
            finite = own if finite is None else finite & own
    return Scores(numbers, logits, vectors, finite)


def _outputs(group: Sequence[Samples], scorer: OutputScorer) -> Float32:
    """Float32 [samples of all, C]."""
    batches, contexts = [each.batch for each in group], [each.context for each in group]
    batch = concatenate(batches)
    if all(context is None for context in contexts):
        outputs = scorer.outputs(batch)
    else:
        outputs = scorer.outputs(batch, join_contexts(batches, contexts))
    if outputs.shape != (len(batch), scorer.declaration.output_columns):
        raise ValueError(f"the scorer gave shape {outputs.shape} for {len(batch)} samples")
    return outputs


def _as_logit(group: Sequence[Samples]) -> Masks | None:
    """Bool [samples of all], True for one of whose probabilities a logit is given; None if for none."""
    wanted = [each.as_logit for each in group]
    if not any(each if isinstance(each, bool) else True in each for each in wanted):
        return None
    return np.concatenate(
        [np.broadcast_to(each, len(of.batch)) for each, of in zip(wanted, group, strict=True)]
    )

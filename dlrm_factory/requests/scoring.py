"""Samples that were read → their outputs, as many at once as is fast."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from types import CodeType
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from dlrm_factory.batch import FeatureBatch, SharedContext, concatenate, join_contexts
from dlrm_factory.config import DLRMDeclaration
from dlrm_factory.config import Output as DeclaredOutput
from dlrm_factory.errors import GroupError, ModuleError, RequestError
from dlrm_factory.requests.answers import (
    Answer,
    answer_error,
    answer_group_lost,
    answer_internal_error,
    answer_module_error,
)
from dlrm_factory.requests.formats.outputs import Scores
from dlrm_factory.requests.numbers import answered_scores

__all__ = ["MAX_TOGETHER", "OutputScorer", "RequestScorer", "Samples"]

logger = logging.getLogger(__name__)

# Beyond so many samples scoring takes as long a sample as before, and joining them more.
MAX_TOGETHER = 512
_MAX_LOGGED = 100  # places of errors that are remembered

Float32 = npt.NDArray[np.float32]
Masks = npt.NDArray[np.bool_]


class OutputScorer(Protocol):
    """A model, as far as the service needs it: what gives all outputs of a batch."""

    @property
    def declaration(self) -> DLRMDeclaration: ...

    def outputs(self, batch: FeatureBatch, shared: SharedContext | None = None) -> Float32:
        """All outputs' columns, float32 [B, C]. Bags in ``shared`` belong to several samples."""
        ...


S = TypeVar("S", bound="Samples")


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

    def requests(self: S) -> Sequence[S]:
        """The same samples with one request each."""
        ...


# Places of the requests, and their samples.
_Read = tuple[Sequence[int], S]
_Scored = tuple[_Read[S], Scores | Answer]


class RequestScorer:
    """Scores what was read of requests. For one thread at a time."""

    def __init__(self, scorer: OutputScorer) -> None:
        self._scorer = scorer
        self._logged: set[tuple[type[BaseException], CodeType | None, int]] = set()

    def score(self, read: Sequence[_Read[S]]) -> tuple[list[_Read[S]], list[Scores | Answer]]:
        """``read``, and the outputs of each of it, or the answer saying why there are none.

        At most `MAX_TOGETHER` samples are scored at once, but where one of ``read`` has more. Where that fails, halves
        are scored, and halves of these, until the requests at fault are alone: they are answered with their own error
        and no other request loses anything. ``read`` comes back as it was, but for such parts, with one request each.
        """
        done: list[_Read[S]] = []
        found: list[Scores | Answer] = []
        for group in _groups(read):
            try:
                found += _score_together([samples for _, samples in group], self._scorer)
                done += group
            except GroupError as error:
                found += self._lost(group, error)
                done += group
            except Exception as error:
                for each, scores in self._apart(_requests(group), error):
                    done.append(each)
                    found.append(scores)
        return done, found

    def _apart(self, requests: Sequence[_Read[S]], error: Exception) -> Iterator[_Scored[S]]:
        """Outputs or error of each of ``requests``, one request each. ``error``: of scoring them all together."""
        if len(requests) == 1:
            yield requests[0], self._answer_failed(error)
            return
        middle = len(requests) // 2
        for half in (requests[:middle], requests[middle:]):
            try:
                found = _score_together([samples for _, samples in half], self._scorer)
            except GroupError as lost:
                found = self._lost(half, lost)
            except Exception as again:
                yield from self._apart(half, again)
                continue
            yield from zip(half, found, strict=True)

    def _lost(self, read: Sequence[_Read[S]], error: GroupError) -> list[Scores | Answer]:
        logger.error("%d samples could not be scored: %s", sum(len(each.batch) for _, each in read), error)
        return [answer_group_lost()] * len(read)

    def _answer_failed(self, error: Exception) -> Answer:
        """The answer to a request that alone could not be scored; what is not the request's fault is logged."""
        if isinstance(error, RequestError):
            return answer_error(error)
        place = _place_of(error)
        if place in self._logged:
            logger.error("A request could not be scored: %s: %s", type(error).__name__, error)
        else:
            if len(self._logged) < _MAX_LOGGED:
                self._logged.add(place)
            logger.error("A request could not be scored", exc_info=error)
        if isinstance(error, ModuleError):
            return answer_module_error(str(error))
        return answer_internal_error("the model could not score; the server's log says why")


def _groups(read: Sequence[_Read[S]]) -> Iterator[list[_Read[S]]]:
    group: list[_Read[S]] = []
    samples = 0
    for each in read:
        size = len(each[1].batch)
        if group and samples + size > MAX_TOGETHER:
            yield group
            group, samples = [], 0
        group.append(each)
        samples += size
    if group:
        yield group


def _requests(group: Sequence[_Read[S]]) -> list[_Read[S]]:
    """The same with one request each."""
    return [
        ([place], samples)
        for places, joint in group
        for place, samples in zip(places, joint.requests(), strict=True)
    ]


def _place_of(error: BaseException) -> tuple[type[BaseException], CodeType | None, int]:
    """Kind of the error that led to ``error``, and where it was raised."""
    seen = {id(error)}  # causes may go in a circle
    while error.__cause__ is not None and id(error.__cause__) not in seen:
        error = error.__cause__
        seen.add(id(error))
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return (type(error), None, 0) if trace is None else (type(error), trace.tb_frame.f_code, trace.tb_lineno)


def _score_together(group: Sequence[Samples], scorer: OutputScorer) -> list[Scores | Answer]:
    """Outputs of each of ``group``. Raises what the scorer raises."""
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
        by_name = {} if own is None else {name: own}
        if its_numbers is None:
            return Scores({}, {}, {name: raw}, own, by_name)
        return Scores({name: its_numbers[start:stop]}, {name: raw}, {}, own, by_name)
    finite: Masks | None = None
    finite_by_name: dict[str, Masks] = {}
    numbers: dict[str, list[float]] = {}
    logits: dict[str, Float32] = {}
    vectors: dict[str, Float32] = {}
    for name, column in columns:
        if column.numbers is None:
            vectors[name] = column.raw[start:stop]
        else:
            numbers[name], logits[name] = column.numbers[start:stop], column.raw[start:stop]
        if column.finite is not None:
            finite_by_name[name] = own = column.finite[start:stop]
            finite = own if finite is None else finite & own
    return Scores(numbers, logits, vectors, finite, finite_by_name)


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

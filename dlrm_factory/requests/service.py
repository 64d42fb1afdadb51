"""Requests in, answers out: read → format → features → score → answer."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from dlrm_factory.errors import RequestError
from dlrm_factory.features import FeatureEncoder, FeatureError, Vocabularies
from dlrm_factory.requests.answers import (
    Answer,
    answer_binary,
    answer_error,
    answer_internal_error,
    answer_json,
    answer_ones,
    with_error_key,
)
from dlrm_factory.requests.decoding import RequestDecoder
from dlrm_factory.requests.describe import describe
from dlrm_factory.requests.explain import explain
from dlrm_factory.requests.formats import DecodedRequest, RequestReader
from dlrm_factory.requests.formats.arrow import answer_arrow
from dlrm_factory.requests.formats.fast import Gathered, ReadCounts
from dlrm_factory.requests.formats.outputs import Scores
from dlrm_factory.requests.formats.shape import Encoding, PathOf
from dlrm_factory.requests.observing import ServiceObserver
from dlrm_factory.requests.request import Ask, Request
from dlrm_factory.requests.scoring import OutputScorer, RequestScorer

__all__ = ["DLRMService", "OutputScorer"]

logger = logging.getLogger(__name__)
_clock = time.perf_counter

# No dense feature of this size is a measurement; layers of float32 overflow somewhere above it.
_MAX_MEASUREMENT = 1e6

# Places of the requests, and their samples.
_Read = tuple[Sequence[int], DecodedRequest | Gathered]


class DLRMService:
    """Answers batches of requests. Nothing that a client sends makes it raise."""

    def __init__(
        self,
        scorer: OutputScorer,
        *,
        model_name: str = "dlrm",
        model_version: str | None = None,
        plan: Mapping[str, Any] | None = None,
        vocabularies: Vocabularies | None = None,
        waiting_groups: Callable[[], Sequence[Mapping[str, Any]]] | None = None,
    ) -> None:
        """Make the service of one model.

        Args:
            plan: of the tables' places, as plain values; only descriptions tell it.
            vocabularies: of the tables that have one.
            waiting_groups: gives other groups of the model that wait for hosts, for descriptions; None for a model
                whose groups have none.
        """
        self._scorer = scorer
        self._request_scorer = RequestScorer(scorer)
        self._serving = scorer.declaration.serving
        self._plan = plan
        self._observer: ServiceObserver | None = None
        self._waiting_groups = waiting_groups
        self._reader = RequestReader(
            encoder=FeatureEncoder(scorer.declaration, vocabularies),
            max_samples=self._serving.max_samples,
            model_name=model_name,
            model_version=model_version,
        )
        self._decoder = RequestDecoder(self._reader, self._serving.max_body_bytes)

    @property
    def batch_requests(self) -> int:
        """Requests in the largest batch that comes."""
        return self._serving.batch_requests

    @property
    def max_body_bytes(self) -> int:
        """Bytes of the largest body that is read."""
        return self._serving.max_body_bytes

    @property
    def model_name(self) -> str:
        """The name that the model is served by."""
        return self._reader.model_name

    @property
    def model_version(self) -> str | None:
        """The version that the archive names; None if it names none."""
        return self._reader.model_version

    @property
    def read_counts(self) -> ReadCounts:
        """Requests so far, by the reader that took them."""
        return self._decoder.counts

    def observe(self, observer: ServiceObserver | None) -> None:
        """Let ``observer``, or nobody, know of each batch from now on."""
        self._observer = observer

    def handle(self, requests: Sequence[Request]) -> list[Answer]:
        """One answer a request, in order.

        A request that is wrong, or only wants a description, is answered once it is read. The samples of the others
        are scored in one batch, and each is answered with its own.
        """
        start = _clock()
        answers, read = self._read(requests)  # bytes → format → features
        decoded = _clock()
        read, scored = self._request_scorer.score(read)
        done = _clock()
        for (places, samples), scores in zip(read, scored, strict=True):
            answers.update(zip(places, self._answer(samples, scores), strict=True))
        for place, answer in answers.items():
            if answer.status >= 400 and requests[place].error_key:
                answers[place] = with_error_key(answer)
        ordered = [answers[place] for place in range(len(requests))]
        if self._observer is not None:
            self._observer.observe(requests, read, scored, ordered, (start, decoded, done, _clock()))
        return ordered

    def _read(self, requests: Sequence[Request]) -> tuple[dict[int, Answer], list[_Read]]:
        """The requests' samples, those of plain requests of one sample together; answers that need no score."""
        answers: dict[int, Answer] = {}
        read: list[_Read] = []
        joint = [
            ([sample.place for sample in gathered.samples], gathered)
            for gathered in self._decoder.gather(requests)
        ]
        taken = {place for places, _ in joint for place in places}
        for place, request in enumerate(requests):
            if place in taken:
                continue
            found = self._read_one(request)
            if isinstance(found, Answer):
                answers[place] = found
            else:
                read.append(([place], found))
        return answers, read + joint

    def _read_one(self, request: Request) -> DecodedRequest | Answer:
        if request.ask is Ask.DESCRIPTION:
            return self._describe()
        try:
            decoded = self._decoder.decode(request)
            return explain(decoded, self._reader) if request.ask is Ask.EXPLANATION else decoded
        except RequestError as error:
            return answer_error(error)
        except Exception:
            logger.exception("A request could not be decoded, through a fault of ours")
            return answer_internal_error("the request could not be decoded; the server's log says why")

    def _describe(self) -> Answer:
        found = dict(self._description)
        # What scores now: code may be taken into use later. Scorers of tests have no engine.
        for name in ("engine", "eager_reason"):
            value = getattr(self._scorer, name, None)
            if value is not None:
                found[name] = value
        if self._waiting_groups is not None:
            found["waiting_groups"] = self._waiting_groups()
        return answer_json(found)

    @cached_property
    def _description(self) -> dict[str, Any]:
        reader = self._reader
        return describe(
            self._scorer.declaration,
            plan=self._plan,
            model_name=reader.model_name,
            model_version=reader.model_version,
        )

    def _answer(self, samples: DecodedRequest | Gathered, scores: Scores | Answer) -> list[Answer]:
        """One answer a request of ``samples``."""
        size = len(samples.samples) if isinstance(samples, Gathered) else 1
        if isinstance(scores, Answer):
            return [scores] * size
        try:
            if isinstance(samples, Gathered):
                return self._answer_ones(samples, scores)
            return [self._answer_one(samples, scores)]
        except RequestError as error:
            return [answer_error(error)]
        except Exception:
            logger.exception("%d answers could not be written, through a fault of ours", size)
            return [
                answer_internal_error("the answer could not be written; the server's log says why")
            ] * size

    def _answer_ones(self, gathered: Gathered, scores: Scores) -> list[Answer]:
        (name, *others), samples = gathered.outputs, gathered.samples
        if others or name in scores.vectors:
            values = scores.values(gathered.outputs)
            answers = [
                answer_json(each.form.of_one(value)) for each, value in zip(samples, values, strict=True)
            ]
        else:
            answers = answer_ones([sample.form for sample in samples], scores.numbers[name])
        if scores.finite is not None:
            for i in np.flatnonzero(~scores.finite).tolist():
                answers[i] = self._answer_not_finite(
                    scores.not_finite(i), i, 0, gathered.batch.dense[i], gathered.path_of
                )
        return answers

    def _answer_one(self, request: DecodedRequest, scores: Scores) -> Answer:
        if scores.finite is not None and not scores.finite.all():
            sample = int(np.argmin(scores.finite))
            of_request = sample % (len(request.batch) // request.copies)
            return self._answer_not_finite(
                scores.not_finite(sample), sample, of_request, request.batch.dense[sample], request.path_of
            )
        if request.encoding is Encoding.ARROW:
            return answer_arrow({name: scores.array(name) for name in request.asked.names})
        content = request.form.content(scores, request.asked)
        if request.encoding is Encoding.BINARY:
            return answer_binary(content, request.form.parts(scores))
        return answer_json(content)

    def _answer_not_finite(
        self, output: str, sample: int, of_request: int, dense: npt.NDArray[np.float32], path_of: PathOf
    ) -> Answer:
        """400 if the client sent one of ``dense`` so large that the model overflows, else 500.

        Args:
            output: name of what is not finite.
            sample: for ``path_of``.
            of_request: the same sample's place among those that its own request holds.
            dense: float32 [dense features] of the sample, as the model gets them.
        """
        what = f'output "{output}" of sample {of_request}'
        feature = int(np.abs(dense).argmax()) if len(dense) else 0
        if not len(dense) or abs(dense[feature]) < _MAX_MEASUREMENT:
            logger.error("The model's %s of a request is not a finite number; are its weights finite?", what)
            return answer_internal_error(f"the model's {what} is not a finite number")
        name = self._scorer.declaration.dense_names[feature]
        message = (
            f'dense feature "{name}": {dense[feature]:.8g} is so large that {what} is not a finite number; '
            "send values of the size that the model was trained on"
        )
        return answer_error(
            RequestError(message, path_of(FeatureError(message, feature=name, sample=sample)))
        )

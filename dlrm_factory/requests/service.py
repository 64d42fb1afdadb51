"""The handler's core: requests in, answers out, with no TorchServe in it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from dlrm_factory.errors import RequestError
from dlrm_factory.features import FeatureEncoder, Vocabularies
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
from dlrm_factory.requests.formats.arrow import answer_arrow, takes_arrow
from dlrm_factory.requests.formats.fast import Gathered
from dlrm_factory.requests.non_finite import too_large
from dlrm_factory.requests.scoring import LogitScorer, Part, score_parts

__all__ = ["DLRMService", "LogitScorer"]

logger = logging.getLogger(__name__)

Headers = Mapping[str, Any]
Finite = npt.NDArray[np.bool_] | None  # None where all are


class DLRMService:
    """Answers batches of requests. Nothing that a client sends makes it raise."""

    def __init__(
        self,
        scorer: LogitScorer,
        *,
        model_name: str = "dlrm",
        model_version: str | None = None,
        plan: Mapping[str, Any] | None = None,
        vocabularies: Vocabularies | None = None,
    ) -> None:
        """``plan`` says where the tables lie, as plain values; only descriptions tell it.

        ``vocabularies``: of the tables that have one.
        """
        self._scorer = scorer
        self._serving = scorer.declaration.serving
        self._plan = plan
        self._reader = RequestReader(
            encoder=FeatureEncoder(scorer.declaration, vocabularies),
            max_samples=self._serving.max_samples,
            model_name=model_name,
            model_version=model_version,
        )
        self._decoder = RequestDecoder(self._reader, self._serving.max_body_bytes)

    @property
    def batch_requests(self) -> int:
        """The most requests that TorchServe hands over at once."""
        return self._serving.batch_requests

    @property
    def max_body_bytes(self) -> int:
        """The largest body that is read."""
        return self._serving.max_body_bytes

    @property
    def model_name(self) -> str:
        """The name that the model is served by."""
        return self._reader.model_name

    @property
    def model_version(self) -> str | None:
        """The version that the archive names; None if it names none."""
        return self._reader.model_version

    def handle(self, requests: Sequence[Mapping[str, Any]], headers: Sequence[Headers] = ()) -> list[Answer]:
        """One answer a request, in order: decode, join, score, split, encode.

        Requests of one sample are decoded and encoded together, the others each alone.

        ``headers``: of each request. TorchServe's own say ``explain: True`` or ``describe: True``.
        """
        headers = headers or [{}] * len(requests)
        answers: dict[int, Answer] = {}
        parts: list[Part] = []
        gathered = self._gather(requests, headers)
        taken = {sample.place for each in gathered for sample in each.samples}
        for place, (request, header) in enumerate(zip(requests, headers, strict=True)):
            if place in taken:
                continue
            decoded = self._decode(request, header)
            if isinstance(decoded, Answer):
                answers[place] = decoded
            else:
                parts.append(self._part(place, decoded))
        parts += [self._joint_part(each, requests, headers) for each in gathered]
        answers.update(score_parts(parts, self._scorer))
        for place, answer in answers.items():
            if answer.status >= 400 and _came_to_kserve(headers[place]):
                answers[place] = with_error_key(answer)
        return [answers[place] for place in range(len(requests))]

    def _gather(self, requests: Sequence[Mapping[str, Any]], headers: Sequence[Headers]) -> list[Gathered]:
        try:
            return self._decoder.gather(requests, headers)
        except Exception:
            logger.exception(
                "Requests could not be read together, through a fault of ours; each is read alone"
            )
            return []

    def _decode(self, request: Mapping[str, Any], header: Mapping[str, Any]) -> DecodedRequest | Answer:
        # TorchServe's own question comes without a body; a client's POST always has one.
        if not request and header.get("describe") == "True":
            return self._description
        try:
            decoded = self._decoder.decode(request, header)
            return explain(decoded, self._reader) if header.get("explain") == "True" else decoded
        except RequestError as error:
            return answer_error(error)
        except Exception:
            logger.exception("A request could not be decoded, through a fault of ours")
            return answer_internal_error("the request could not be decoded; the server's log says why")

    @cached_property
    def _description(self) -> Answer:
        reader = self._reader
        return answer_json(
            describe(
                self._scorer.declaration,
                plan=self._plan,
                model_name=reader.model_name,
                model_version=reader.model_version,
            )
        )

    def _part(self, place: int, decoded: DecodedRequest) -> Part:
        def answers(numbers: list[float], finite: Finite) -> list[Answer]:
            return [self._encode(decoded, numbers, finite)]

        return Part([place], decoded.batch, decoded.context, decoded.output == "logit", answers)

    def _joint_part(
        self, gathered: Gathered, requests: Sequence[Mapping[str, Any]], headers: Sequence[Headers]
    ) -> Part:
        samples = gathered.samples
        places = [sample.place for sample in samples]

        def answers(numbers: list[float], finite: Finite) -> list[Answer]:
            made = answer_ones([sample.content for sample in samples], numbers)
            for i in () if finite is None else np.flatnonzero(~finite).tolist():
                # Whose fault that is takes a closer look, with the paths of this one request.
                decoded = self._decode(requests[places[i]], headers[places[i]])
                if isinstance(decoded, DecodedRequest):
                    made[i] = self._encode(decoded, numbers[i : i + 1], np.zeros(1, dtype=np.bool_))
                else:
                    made[i] = decoded
            return made

        return Part(places, gathered.batch, None, [sample.as_logit for sample in samples], answers)

    def _encode(self, item: DecodedRequest, numbers: list[float], finite: Finite) -> Answer:
        if finite is None or finite.all():
            if takes_arrow(item):
                return answer_arrow(numbers)
            content = item.content(numbers)
            return answer_binary(content, numbers) if item.binary else answer_json(content)
        error = too_large(item, int(np.argmin(finite)), self._scorer.declaration)
        if error is not None:
            return answer_error(error)
        logger.error("The model gave a score that is not a finite number; are its weights finite?")
        return answer_internal_error("the model gave a score that is not a finite number")


def _came_to_kserve(headers: Headers) -> bool:
    """Tell requests to KServe's addresses: of all others TorchServe says what follows the model in the path."""
    return "explain" in headers and "url_path" not in headers

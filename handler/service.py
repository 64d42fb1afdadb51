"""The handler's core: requests in, answers out, with no TorchServe in it."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from dlrm_factory.batch import FeatureBatch, SharedContext, concatenate, join_contexts
from dlrm_factory.config import DLRMDeclaration
from dlrm_factory.errors import RequestError
from dlrm_factory.features import FeatureEncoder, Vocabularies
from dlrm_factory.scorer import probabilities
from handler.arrow import answer_arrow, takes_arrow
from handler.decoding import RequestDecoder
from handler.describe import describe
from handler.explain import explain
from handler.non_finite import too_large
from handler.responses import Answer, answer_error, answer_internal_error, answer_json, shortest
from handler.shapes import DecodedRequest, RequestReader

__all__ = ["DLRMService", "LogitScorer"]

logger = logging.getLogger(__name__)

Float32 = npt.NDArray[np.float32]


class LogitScorer(Protocol):
    """What the service needs of a scorer."""

    @property
    def declaration(self) -> DLRMDeclaration: ...

    def logits(self, batch: FeatureBatch, shared: SharedContext | None = None) -> Float32:
        """Float32 [B]. Bags in ``shared`` belong to several samples."""
        ...


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

    def handle(
        self, requests: Sequence[Mapping[str, Any]], headers: Sequence[Mapping[str, Any]] = ()
    ) -> list[Answer]:
        """One answer a request, in order: decode each, join, score, split, encode each.

        ``headers``: of each request. TorchServe's own say ``explain: True`` or ``describe: True``.
        """
        headers = headers or [{}] * len(requests)
        decoded = [self._decode(request, header) for request, header in zip(requests, headers, strict=True)]
        good = [item for item in decoded if isinstance(item, DecodedRequest)]
        answers = iter([answer for group in self._groups(good) for answer in self._score_together(group)])
        return [item if isinstance(item, Answer) else next(answers) for item in decoded]

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

    def _groups(self, decoded: Sequence[DecodedRequest]) -> Iterator[list[DecodedRequest]]:
        """Requests that are scored at once: together at most max_samples, so that memory stays bounded."""
        group: list[DecodedRequest] = []
        samples = 0
        for item in decoded:
            if group and samples + len(item.batch) > self._serving.max_samples:
                yield group
                group, samples = [], 0
            group.append(item)
            samples += len(item.batch)
        if group:
            yield group

    def _score_together(self, group: Sequence[DecodedRequest]) -> list[Answer]:
        try:
            scores = self._score(group)
            finite = np.isfinite(scores)
            numbers = shortest(np.where(finite, scores, np.float32(0)))
            bounds = np.cumsum([0, *(len(item.batch) for item in group)]).tolist()
            return [
                self._encode(item, numbers[start:stop], finite[start:stop])
                for item, start, stop in zip(group, bounds, bounds[1:], strict=False)
            ]
        except Exception:
            logger.exception("A batch of %d requests could not be scored", len(group))
            return [answer_internal_error("the model could not score; the server's log says why")] * len(
                group
            )

    def _score(self, group: Sequence[DecodedRequest]) -> Float32:
        """Float32 [samples of all], each as its request's output asks."""
        batches = [item.batch for item in group]
        batch, shared = concatenate(batches), join_contexts(batches, [item.context for item in group])
        logits = self._scorer.logits(batch) if shared is None else self._scorer.logits(batch, shared)
        if logits.shape != (len(batch),):
            raise ValueError(f"the scorer gave shape {logits.shape} for {len(batch)} samples")
        as_logit = np.repeat([item.output == "logit" for item in group], [len(item.batch) for item in group])
        return np.where(as_logit, logits, probabilities(logits))

    def _encode(self, item: DecodedRequest, numbers: list[float], finite: npt.NDArray[np.bool_]) -> Answer:
        if finite.all():
            return answer_arrow(numbers) if takes_arrow(item) else answer_json(item.content(numbers))
        error = too_large(item, int(np.argmin(finite)), self._scorer.declaration)
        if error is not None:
            return answer_error(error)
        logger.error("The model gave a score that is not a finite number; are its weights finite?")
        return answer_internal_error("the model gave a score that is not a finite number")

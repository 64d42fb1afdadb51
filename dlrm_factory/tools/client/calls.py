"""Calls of a client: arguments → request, and its response → answer.

A request id tells a client that an answer is its own. TorchServe can answer a request twice while workers are scaled
away; on a kept connection every later answer would then belong to the request before. A worker gives an id back, so
that a client sees it.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, Literal, TypeVar
from urllib.parse import quote

import httpx
import numpy as np
import numpy.typing as npt

from dlrm_factory.tools.client.canary import CanarySource
from dlrm_factory.tools.client.encoding import columns_of, encode_body
from dlrm_factory.tools.client.errors import (
    ClientError,
    InvalidRequest,
    ServerFault,
    error_of_answer,
    error_of_silence,
)
from dlrm_factory.tools.client.retrying import Outcome

__all__ = [
    "REQUEST_ID_HEADER",
    "Call",
    "Calls",
    "Columns",
    "Explanation",
    "Float64",
    "ModelDescription",
    "Names",
    "Output",
    "RankedCandidate",
    "Rows",
    "belongs_to",
    "finish",
    "foreign_answer",
    "with_request_id",
]

Float64 = npt.NDArray[np.float64]

# TorchServe sets X-Request-Id itself, to an id of its own.
REQUEST_ID_HEADER = "x-dlrm-request-id"
T = TypeVar("T")
Output = Literal["probability", "logit"]
# Or a table of pandas, polars or PyArrow, for either.
Rows = Sequence[Mapping[str, Any]] | Any
Columns = Mapping[str, Any] | Any
# Several outputs, whose answer is a dict; a plain string is one.
Names = list[str] | tuple[str, ...]
_JSON = {"Content-Type": "application/json", "Accept": "application/json"}


@dataclass(frozen=True, kw_only=True)
class RankedCandidate:
    """One candidate of a ranking.

    Fields:
        id: the id it was sent with, None if it had none.
        index: its place among the candidates that were sent, from 0.
        score: what it was ranked by: a probability or a logit, or the value of ``rank_by``.
        outputs: the model's outputs by name, where the answer has more than the score: numbers, and lists of vectors.
    """

    id: str | int | None
    index: int
    score: float
    outputs: dict[str, float | list[float]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """Explanation of one sample's score.

    Fields:
        score: of the sample as it is.
        contributions: feature → how much its value adds to the score.
    """

    score: float
    contributions: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class ModelDescription:
    """One version of a model as the server has it.

    Fields:
        name, version: as registered.
        ready_workers: processes that answer now.
        details: what the model says of itself: its features, limits, plan and versions.
    """

    name: str
    version: str
    ready_workers: int
    details: dict[str, Any]


def read_scores(answer: Any) -> Float64:
    """Float64 [B], or [B, size] of a vector. InvalidRequest where the answer has several outputs."""
    predictions = answer["predictions"]
    _check_single(predictions)
    return _array(predictions)


def read_outputs(answer: Any, names: Sequence[str]) -> dict[str, Float64]:
    """Float64 [B], or [B, size] of a vector, of each of ``names``."""
    predictions = answer["predictions"]
    if len(names) == 1:
        return {names[0]: _array(predictions)}
    return {name: _array([each[name] for each in predictions]) for name in names}


def _array(values: Sequence[Any]) -> Float64:
    array = np.array(values, dtype=np.float64)
    if array.ndim not in (1, 2):
        raise ValueError(f"the predictions have {array.ndim} dimensions")
    return array


def _check_single(scores: Sequence[Any]) -> None:
    """InvalidRequest unless each of ``scores`` is of one output."""
    if scores and isinstance(scores[0], Mapping):
        names = list(scores[0])
        raise InvalidRequest(
            f"the model answers with several outputs, {', '.join(names)}; name the one you want, as in "
            f'outputs="{names[0]}", or several, as in outputs={json.dumps(names)}'
        )


def read_ranking(answer: Any) -> tuple[RankedCandidate, ...]:
    """Best first."""
    return tuple(
        RankedCandidate(
            id=each.get("id"),
            index=int(each["index"]),
            score=float(each["score"]),
            outputs=dict(each.get("outputs", {})),
        )
        for each in answer["ranking"]
    )


def read_explanations(answer: Any) -> tuple[Explanation, ...]:
    """One a sample. InvalidRequest where the answer has several outputs."""
    _check_single([each["score"] for each in answer["explanations"][:1]])
    return tuple(
        Explanation(
            score=float(each["score"]),
            contributions={name: float(value) for name, value in each["contributions"].items()},
        )
        for each in answer["explanations"]
    )


def read_description(answer: Any) -> ModelDescription:
    """The first of TorchServe's list, which holds one version unless all were asked for."""
    found = answer[0]
    return ModelDescription(
        name=str(found["modelName"]),
        version=str(found["modelVersion"]),
        ready_workers=sum(worker["status"] == "READY" for worker in found["workers"]),
        details=dict(found.get("customizedMetadata") or {}),
    )


def with_request_id(request: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of an httpx request with a new id in its headers."""
    return {**request, "headers": {**request.get("headers", {}), REQUEST_ID_HEADER: secrets.token_hex(8)}}


def belongs_to(response: httpx.Response, request: dict[str, Any]) -> bool:
    """Return True unless ``response`` bears another request's id. Errors of TorchServe itself bear none."""
    given = response.headers.get(REQUEST_ID_HEADER)
    return given is None or given == request["headers"][REQUEST_ID_HEADER]


def foreign_answer(response: httpx.Response) -> httpx.RemoteProtocolError:
    """Make the error for an answer that belongs to another request: as if the connection had broken."""
    return httpx.RemoteProtocolError("the answer belongs to another request", request=response.request)


@dataclass(frozen=True, kw_only=True)
class Call(Generic[T]):
    """One call.

    Fields:
        request: arguments of httpx's ``request``.
        read: takes the answer's JSON.
        default: the same call of the model's default version, for a call of a canary, which may be gone.
    """

    request: dict[str, Any]
    read: Callable[[Any], T]
    default: Call[T] | None = None

    def instead(self, outcome: Outcome) -> Call[T] | None:
        """The call to make in place of this one, whose canary is gone, or has no worker; None for none."""
        gone = isinstance(outcome, httpx.Response) and outcome.status_code in (404, 503)
        return self.default if gone else None


@dataclass(frozen=True, kw_only=True)
class Calls:
    """Makes the calls to one model.

    Fields:
        inference, management: base URLs; without the latter a model cannot be described.
        inference_auth, management_auth: how requests get their tokens; None for none.
        model, version: None for the default version.
        canary: who asks another version for some keys; None for nobody.
    """

    inference: str
    management: str | None
    inference_auth: httpx.Auth | None
    management_auth: httpx.Auth | None
    model: str
    version: str | None
    canary: CanarySource | None = None

    def score(
        self,
        instances: Rows | None,
        inputs: Columns | None,
        output: Output,
        outputs: str | Names | None,
        key: str | None = None,
    ) -> Call[Any]:
        body = {**_samples(instances, inputs), "output": output, **_asked(outputs)}
        several = outputs is not None and not isinstance(outputs, str)
        read = partial(read_outputs, names=body["outputs"]) if several else read_scores
        return self._post("predictions", body, read, key)

    def rank(
        self,
        context: Mapping[str, Any],
        candidates: Rows | Columns,
        top_k: int | None,
        output: Output,
        outputs: str | Names | None,
        rank_by: str | None,
        key: str | None = None,
    ) -> Call[tuple[RankedCandidate, ...]]:
        columns = columns_of(candidates)
        body: dict[str, Any] = {
            "context": context,
            "candidates": candidates if columns is None else columns,
            "output": output,
            **_asked(outputs),
        }
        for key, value in {"top_k": top_k, "rank_by": rank_by}.items():
            if value is not None:
                body[key] = value
        return self._post("predictions", body, read_ranking, key)

    def explain(
        self,
        instances: Rows | None,
        inputs: Columns | None,
        output: Output,
        outputs: str | None,
        key: str | None = None,
    ) -> Call[tuple[Explanation, ...]]:
        body = {**_samples(instances, inputs), "output": output, **_asked(outputs)}
        return self._post("explanations", body, read_explanations, key)

    def describe(self) -> Call[ModelDescription]:
        if self.management is None:
            raise ClientError(
                "to describe a model the client needs the management API: give management_url, "
                "e.g. http://127.0.0.1:8081"
            )
        request = {
            "method": "GET",
            "url": f"{self.management}/models/{self._path()}",
            "params": {"customized": "true"},
            "auth": self.management_auth,
        }
        return Call(request=request, read=read_description)

    def _post(self, verb: str, body: Mapping[str, Any], read: Callable[[Any], T], key: str | None) -> Call[T]:
        url = f"{self.inference}/{verb}/{self._path()}"
        request = {
            "method": "POST",
            "url": url,
            "content": encode_body(body),
            "headers": _JSON,
            "auth": self.inference_auth,
        }
        call = Call(request=request, read=read)
        if self.canary is None or key is None:
            return call
        version = self.canary.version_for(key)
        if version is None:
            return call
        at_version = {**request, "url": f"{url}/{quote(version, safe='')}"}
        return Call(request=at_version, read=read, default=call)

    def _path(self) -> str:
        parts = [self.model] if self.version is None else [self.model, self.version]
        return "/".join(quote(part, safe="") for part in parts)


def _asked(outputs: str | Names | None) -> dict[str, Any]:
    if outputs is None:
        return {}
    return {"outputs": [outputs] if isinstance(outputs, str) else list(outputs)}


def _samples(instances: Rows | None, inputs: Columns | None) -> dict[str, Any]:
    if instances is not None and inputs is None:
        columns = columns_of(instances)
        return {"instances": instances} if columns is None else {"inputs": columns}
    if inputs is not None and instances is None:
        columns = columns_of(inputs)
        return {"inputs": inputs if columns is None else columns}
    raise InvalidRequest("give either instances=[{…}, …], one object a sample, or inputs={name: values, …}")


def finish(call: Call[T], outcome: Outcome) -> T:
    """Answer to ``call``; raises its error."""
    if isinstance(outcome, httpx.RequestError):
        raise error_of_silence(outcome) from outcome
    if not outcome.is_success:
        raise error_of_answer(outcome)
    try:
        return call.read(outcome.json())
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise ServerFault(
            f"the answer is not that of a DLRM model ({error!r}): {outcome.text[:200]}",
            status=outcome.status_code,
        ) from error

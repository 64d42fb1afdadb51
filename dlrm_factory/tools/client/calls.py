"""Each thing a client can ask for, as one HTTP request and the way to read its answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar
from urllib.parse import quote

import httpx

from dlrm_factory.tools.client.answers import (
    Explanation,
    Float32,
    ModelDescription,
    RankedCandidate,
    read_description,
    read_explanations,
    read_ranking,
    read_scores,
)
from dlrm_factory.tools.client.encoding import columns_of, encode_body
from dlrm_factory.tools.client.errors import ClientError, InvalidRequest, ServerFault
from dlrm_factory.tools.client.failures import error_of_answer, error_of_silence
from dlrm_factory.tools.client.retrying import Outcome

__all__ = ["Call", "Calls", "Columns", "Output", "Rows", "finish"]

T = TypeVar("T")
Output = Literal["probability", "logit"]
# Or a table of pandas, polars or PyArrow, for either.
Rows = Sequence[Mapping[str, Any]] | Any
Columns = Mapping[str, Any] | Any

_JSON = {"Content-Type": "application/json", "Accept": "application/json"}


@dataclass(frozen=True, kw_only=True)
class Call(Generic[T]):
    """``request`` are arguments of httpx's ``request``; ``read`` takes the answer's JSON."""

    request: dict[str, Any]
    read: Callable[[Any], T]


@dataclass(frozen=True, kw_only=True)
class Calls:
    """Makes the calls to one model.

    Fields:
        inference, management: base URLs; without the latter a model cannot be described.
        inference_auth, management_auth: how requests get their tokens; None for none.
        model, version: None for the default version.
    """

    inference: str
    management: str | None
    inference_auth: httpx.Auth | None
    management_auth: httpx.Auth | None
    model: str
    version: str | None

    def score(self, instances: Rows | None, inputs: Columns | None, output: Output) -> Call[Float32]:
        return self._post("predictions", {**_samples(instances, inputs), "output": output}, read_scores)

    def rank(
        self, context: Mapping[str, Any], candidates: Rows | Columns, top_k: int | None, output: Output
    ) -> Call[tuple[RankedCandidate, ...]]:
        columns = columns_of(candidates)
        body: dict[str, Any] = {
            "context": context,
            "candidates": candidates if columns is None else columns,
            "output": output,
        }
        if top_k is not None:
            body["top_k"] = top_k
        return self._post("predictions", body, read_ranking)

    def explain(
        self, instances: Rows | None, inputs: Columns | None, output: Output
    ) -> Call[tuple[Explanation, ...]]:
        body = {**_samples(instances, inputs), "output": output}
        return self._post("explanations", body, read_explanations)

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

    def _post(self, verb: str, body: Mapping[str, Any], read: Callable[[Any], T]) -> Call[T]:
        request = {
            "method": "POST",
            "url": f"{self.inference}/{verb}/{self._path()}",
            "content": encode_body(body),
            "headers": _JSON,
            "auth": self.inference_auth,
        }
        return Call(request=request, read=read)

    def _path(self) -> str:
        parts = [self.model] if self.version is None else [self.model, self.version]
        return "/".join(quote(part, safe="") for part in parts)


def _samples(instances: Rows | None, inputs: Columns | None) -> dict[str, Any]:
    if instances is not None and inputs is None:
        columns = columns_of(instances)
        return {"instances": instances} if columns is None else {"inputs": columns}
    if inputs is not None and instances is None:
        columns = columns_of(inputs)
        return {"inputs": inputs if columns is None else columns}
    raise InvalidRequest("give either instances=[{…}, …], one object a sample, or inputs={name: values, …}")


def finish(call: Call[T], outcome: Outcome) -> T:
    """What ``call`` asked for, or its error."""
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

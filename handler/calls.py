"""The kinds of calls that TorchServe hands over alike, told apart by what only its front end can write.

Requests of HTTP carry headers, some of them TorchServe's own. Those of gRPC carry none, but for a sequence's in
`StreamPredictions2`. Each kind wants its own answer: a wrong one makes the front end end the worker.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from enum import Enum
from typing import Any, Protocol

from dlrm_factory.requests.answers import Answer
from dlrm_factory.requests.request import Request
from handler.model_infer import answer_model_infer, decode_model_infer
from handler.request import read_request

__all__ = ["Call", "CallAnswers", "Service", "answer_calls", "are_predictions_by_http", "call_of"]

_SEQUENCE = frozenset(("ts_request_sequence_id", "ts_request_sequence_start", "ts_request_sequence_end"))
_JSON = "application/json"
_LEFT_OUT = Answer(status=200, body=b"")

Parameters = Mapping[str, Any]  # name → value, as TorchServe hands a request over
Headers = Mapping[str, Any]


class Call(Enum):
    """Kind of call that a client made."""

    HTTP = "HTTP, or a description by gRPC"
    PREDICTIONS = "Predictions or StreamPredictions"
    STREAM = "StreamPredictions2"
    MODEL_INFER = "ModelInfer of the Open Inference Protocol"


class Service(Protocol):
    """Service that scores requests whatever they came by."""

    @property
    def model_name(self) -> str: ...
    @property
    def model_version(self) -> str | None: ...
    @property
    def max_body_bytes(self) -> int: ...

    def handle(self, requests: Sequence[Request]) -> list[Answer]: ...


class CallAnswers(Protocol):
    """Context of TorchServe: notes of a batch's answers beside their bodies."""

    request_ids: MutableMapping[int, str]

    def set_response_header(self, idx: int, key: str, value: str) -> None: ...


def call_of(sent: Parameters, headers: Headers) -> Call:
    """The kind of the request ``sent``.

    ``headers``: text by name, beside which TorchServe keeps a dict for each parameter.
    """
    if type(headers.get("explain")) is str:  # most requests: TorchServe writes it for HTTP's predictions
        return Call.HTTP
    names = {name for name, value in headers.items() if isinstance(value, str)}
    if names:
        return Call.STREAM if names <= _SEQUENCE else Call.HTTP
    body = headers.get("body")
    # Predictions' parameters have no type, and a ModelInfer is JSON of TorchServe's own making.
    if len(sent) == 1 and isinstance(body, dict) and body.get("content-type") == _JSON:
        return Call.MODEL_INFER
    return Call.PREDICTIONS


def are_predictions_by_http(headers: Sequence[Headers]) -> bool:
    """True if each request takes an answer of HTTP, and a second one does no harm."""
    return all(type(each.get("explain")) is str for each in headers)


def answer_calls(
    service: Service, sent: Sequence[Parameters], headers: Sequence[Headers], context: CallAnswers
) -> list[Answer]:
    """One answer a request, as ``service`` gives it and as the front end needs it for its kind of call."""
    calls = [call_of(each, header) for each, header in zip(sent, headers, strict=True)]
    if all(call is Call.HTTP for call in calls):
        return service.handle(
            [read_request(each, header) for each, header in zip(sent, headers, strict=True)]
        )
    requests = {
        i: read_request(
            decode_model_infer(sent[i], service.max_body_bytes) if call is Call.MODEL_INFER else sent[i],
            headers[i],
        )
        for i, call in enumerate(calls)
        if call is not Call.STREAM
    }
    found = dict(zip(requests, service.handle(list(requests.values())), strict=True))
    answers = []
    for i, call in enumerate(calls):
        if call is Call.STREAM:
            # The front end closes such a call by itself, and a late answer would end the thread that serves this
            # worker. A request that the answer leaves out does no harm.
            context.request_ids.pop(i, None)
        elif call is not Call.HTTP:
            # The last part of a stream, which TorchServe looks for in StreamPredictions.
            context.set_response_header(i, "ts_stream_next", "false")
        answer = found.get(i, _LEFT_OUT)
        if call is Call.MODEL_INFER:
            answer = answer_model_infer(answer, sent[i], service.model_name, service.model_version)
        answers.append(answer)
    return answers

"""Kinds of calls, told apart by their headers, and what each needs beside its answer."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from typing import Any

import pytest

from dlrm_factory.requests.answers import Answer
from dlrm_factory.requests.request import Request
from handler.calls import Call, answer_calls, call_of
from handler.model_infer import answer_model_infer, decode_model_infer

SEQUENCE = {"ts_request_sequence_id": "s", "ts_request_sequence_end": "true"}
HTTP = {"Host": "a", "explain": "False"}
PLAIN, JSON = {"content-type": ""}, {"content-type": "application/json"}


class Echo:
    """Answers each request with its body as JSON."""

    model_name, model_version, max_body_bytes = "m", "1.0", 1000

    def handle(self, requests: Sequence[Request]) -> list[Answer]:
        return [Answer(status=200, body=json.dumps(request.body).encode()) for request in requests]


class Context:
    """TorchServe's context, as far as it is used."""

    def __init__(self, size: int) -> None:
        self.request_ids = {i: f"id-{i}" for i in range(size)}
        self.headers: dict[int, dict[str, str]] = {}

    def set_response_header(self, idx: int, key: str, value: str) -> None:
        self.headers.setdefault(idx, {})[key] = value


@pytest.mark.parametrize(
    ("headers", "call"),
    [
        ({"body": JSON, **HTTP}, Call.HTTP),
        ({"body": JSON, "Content-Length": "2"}, Call.HTTP),
        ({"body": JSON, "Content-Length": "0", **SEQUENCE}, Call.HTTP),
        ({"describe": "True"}, Call.HTTP),
        ({"body": PLAIN}, Call.PREDICTIONS),
        ({"explain": PLAIN}, Call.PREDICTIONS),
        ({}, Call.PREDICTIONS),
        ({"body": PLAIN, **SEQUENCE}, Call.STREAM),
        ({"body": JSON}, Call.MODEL_INFER),
    ],
)
def test_kinds(headers: dict[str, Any], call: Call) -> None:
    request = {name: b"" for name, value in headers.items() if isinstance(value, dict)}
    assert call_of(request, headers) is call


def test_a_batch_of_all_kinds() -> None:
    infer = {"id": "7", "model_name": "m", "inputs": []}
    bodies: list[Any] = [{"by": "http"}, {"by": "grpc"}, {"by": "stream"}, json.dumps(infer).encode()]
    headers = [{"body": JSON, **HTTP}, {"body": PLAIN}, {"body": PLAIN, **SEQUENCE}, {"body": JSON}]
    context = Context(4)
    answers = answer_calls(Echo(), [{"body": body} for body in bodies], headers, context)
    assert [answer.body for answer in answers[:3]] == [b'{"by": "http"}', b'{"by": "grpc"}', b""]
    assert json.loads(answers[3].body) == {"id": "7", "model_name": "m", "model_version": "1.0", "inputs": []}
    assert context.request_ids == {0: "id-0", 1: "id-1", 3: "id-3"}
    assert context.headers == {1: {"ts_stream_next": "false"}, 3: {"ts_stream_next": "false"}}


def test_a_batch_of_streams_alone_is_answered_with_nothing() -> None:
    context = Context(2)
    answers = answer_calls(Echo(), [{"body": b""}] * 2, [{"body": PLAIN, **SEQUENCE}] * 2, context)
    assert len(answers) == 2
    assert context.request_ids == {}


def test_tensors_are_read_as_they_were_sent() -> None:
    texts = ["u17", "größe", "=", ""]
    sent = {
        "model_name": "m",
        "inputs": [
            {"datatype": "BYTES", "data": [base64.b64encode(text.encode()).decode() for text in texts]},
            {"datatype": "UINT64", "data": [1, -1]},
            {"datatype": "INT64", "data": [-1]},
            {"datatype": "FP16"},
        ],
    }
    found = decode_model_infer({"body": json.dumps(sent).encode()}, 1000)["body"]
    assert "model_name" not in found
    assert found["inputs"][0]["data"] == texts
    assert [each.get("data") for each in found["inputs"][1:]] == [[1, 2**64 - 1], [-1], None]
    # Where TorchServe decodes bodies itself.
    assert decode_model_infer({"body": sent}, 1000)["body"] == found


@pytest.mark.parametrize("body", [b"", b"[]", b"\xff", b'{"inputs": 1}', b'{"inputs": []}' + b" " * 1000])
def test_what_torchserve_did_not_make_stays(body: bytes) -> None:
    request = {"body": body}
    assert decode_model_infer(request, 1000) is request


def test_an_error_is_an_output() -> None:
    error = {"code": 400, "message": "no"}
    answer = Answer(status=400, body=json.dumps(error).encode())
    found = answer_model_infer(answer, {"body": b"not JSON"}, "m", None)
    assert found.status == 200
    output = {"name": "error", "datatype": "BYTES", "shape": [1], "data": [error]}
    assert json.loads(found.body) == {"id": "", "model_name": "m", "model_version": "", "outputs": [output]}

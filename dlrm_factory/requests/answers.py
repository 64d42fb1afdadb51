"""Scores and errors → the bytes of an answer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from dlrm_factory.errors import RequestError
from dlrm_factory.requests.formats.shape import PlainForm

__all__ = [
    "Answer",
    "answer_binary",
    "answer_error",
    "answer_going_away",
    "answer_group_lost",
    "answer_internal_error",
    "answer_json",
    "answer_module_error",
    "answer_ones",
    "answer_scaled_away",
    "answer_worker_lost",
    "with_error_key",
]

_MAX_CHARACTERS = 500  # of a module's own message


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """One HTTP answer: its status, its body, the body's type, and further headers; JSON is in UTF-8."""

    status: int
    body: bytes
    content_type: str = "application/json"
    headers: Mapping[str, str] = {}


def answer_json(content: Any) -> Answer:
    """200 with ``content``, which holds plain Python values only."""
    return Answer(status=200, body=msgspec.json.encode(content))


def answer_binary(content: Any, parts: Sequence[npt.NDArray[np.float32]]) -> Answer:
    """200 with ``content``, and behind it ``parts`` as float32, little-endian: KServe v2's binary answer."""
    head = msgspec.json.encode(content)
    return Answer(
        status=200,
        body=b"".join([head, *(part.astype("<f4", copy=False).tobytes() for part in parts)]),
        content_type="application/octet-stream",
        headers={"Inference-Header-Content-Length": str(len(head))},
    )


def answer_ones(forms: Sequence[PlainForm], scores: list[float]) -> list[Answer]:
    """Answers of requests of one sample: `answer_json` of each form with the score of its place, written at once."""
    written = msgspec.json.encode(scores)[1:-1].split(b",")
    return [
        Answer(status=200, body=b"%b%b%b" % (form.before, number, form.after))
        for form, number in zip(forms, written, strict=True)
    ]


def answer_error(error: RequestError) -> Answer:
    """The error's own status and body."""
    return _answer_error_body(error.code, error.body())


def with_error_key(answer: Answer) -> Answer:
    """The error ``answer`` with its message also under ``error``, where KServe's and Triton's clients read it."""
    body = json.loads(answer.body)
    return _answer_error_body(answer.status, {**body, "error": body["message"]})


def answer_internal_error(message: str) -> Answer:
    """500: the fault is ours."""
    return _answer_error_body(500, {"code": 500, "type": "InternalError", "message": message, "path": "$"})


def answer_module_error(message: str) -> Answer:
    """500: the fault is the model's own module, and ``message`` says where in it."""
    text = " ".join(message.split())
    if len(text) > _MAX_CHARACTERS:
        text = f"{text[:_MAX_CHARACTERS]}..."
    return _answer_error_body(500, {"code": 500, "type": "ModuleError", "message": text, "path": "$"})


def answer_scaled_away() -> Answer:
    """503: the request may have been answered already, so this answer must be one that nobody takes for another.

    TorchServe closes a connection after any error.
    """
    message = "the worker that had this request was scaled away; send it again"
    return _answer_error_body(503, {"code": 503, "type": "WorkerScaledAway", "message": message, "path": "$"})


def answer_going_away() -> Answer:
    """503: the worker's server, or its version of the model, goes away, and takes no more requests."""
    message = "the server, or this version of the model, is going away; send the request again"
    return _answer_error_body(503, {"code": 503, "type": "GoingAway", "message": message, "path": "$"})


def answer_group_lost() -> Answer:
    """503: a rank of the model is gone, and the request may be sent again."""
    message = "a process of the group that holds the model is gone; send it again"
    return _answer_error_body(503, {"code": 503, "type": "GroupLost", "message": message, "path": "$"})


def answer_worker_lost() -> Answer:
    """503: the process that had the request was killed, and the request may be sent again."""
    message = "the worker that had this request is gone; send it again"
    return _answer_error_body(503, {"code": 503, "type": "WorkerLost", "message": message, "path": "$"})


def _answer_error_body(code: int, body: dict[str, Any]) -> Answer:
    # ASCII: what a client sent may be quoted, and need not be Unicode that UTF-8 can write.
    return Answer(status=code, body=json.dumps(body).encode("ascii"))

"""The Open Inference Protocol's `ModelInfer` by gRPC, which TorchServe turns into JSON and its answer back again.

What it makes of a request differs from KServe's JSON: ``model_name`` is in the body, BYTES are base64, and unsigned
numbers of the upper half are negative. Of an answer it takes ``id``, ``model_name``, ``model_version`` and
``outputs``, all of which must be there, and no status: so an error is an output too.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any

import msgspec

from dlrm_factory.requests.answers import Answer

__all__ = ["answer_model_infer", "decode_model_infer"]

_UNSIGNED = {"UINT8": 2**32, "UINT16": 2**32, "UINT32": 2**32, "UINT64": 2**64}
_ERROR = "error"


def decode_model_infer(request: Mapping[str, Any], max_body_bytes: int) -> Mapping[str, Any]:
    """``request`` as KServe's JSON has it. One that is too large, or not TorchServe's, stays as it is."""
    body = _body(request, max_body_bytes)
    if body is None or not isinstance(body.get("inputs"), list):
        return request
    kept = {key: value for key, value in body.items() if key != "model_name"}
    return {"body": {**kept, "inputs": [_tensor(each) for each in body["inputs"]]}}


def answer_model_infer(
    answer: Answer, request: Mapping[str, Any], model_name: str, model_version: str | None
) -> Answer:
    """``answer`` with all that TorchServe reads of it.

    An error becomes one output, called ``error``, of datatype BYTES, whose one element is the error's JSON.
    """
    content = msgspec.json.decode(answer.body)
    common = {"id": _id(request), "model_name": model_name, "model_version": model_version or ""}
    if answer.status == 200:
        return Answer(status=200, body=msgspec.json.encode({**common, **content}))
    output = {"name": _ERROR, "datatype": "BYTES", "shape": [1], "data": [content]}
    return Answer(status=200, body=msgspec.json.encode({**common, "outputs": [output]}))


def _body(request: Mapping[str, Any], max_body_bytes: int | None = None) -> dict[str, Any] | None:
    raw = request.get("body")
    if isinstance(raw, (bytes, bytearray)):
        if max_body_bytes is not None and len(raw) > max_body_bytes:
            return None
        try:
            raw = msgspec.json.decode(raw)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None
    return raw if isinstance(raw, dict) else None


def _id(request: Mapping[str, Any]) -> str:
    found = (_body(request) or {}).get("id")
    return found if isinstance(found, str) else ""


def _tensor(sent: Any) -> Any:
    if not isinstance(sent, dict) or not isinstance(sent.get("data"), list):
        return sent
    datatype, data = sent.get("datatype"), sent["data"]
    if datatype == "BYTES":
        return {**sent, "data": [_text(each) for each in data]}
    if datatype in _UNSIGNED and any(type(each) is int and each < 0 for each in data):
        return {**sent, "data": [each % _UNSIGNED[datatype] if type(each) is int else each for each in data]}
    return sent


def _text(sent: Any) -> Any:
    """The string that was sent; bytes that are no text become half a surrogate pair each, which ids refuse."""
    if not isinstance(sent, str):
        return sent
    try:
        return base64.b64decode(sent, validate=True).decode("utf-8", "surrogateescape")
    except (binascii.Error, ValueError):
        return sent

"""TorchServe's element of a batch and its headers → a `Request`, in the words of HTTP or of this project alone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from dlrm_factory.errors import RequestError
from dlrm_factory.requests.request import Ask, Request

__all__ = ["REQUEST_ID", "read_request", "request_id_of"]

REQUEST_ID = "x-dlrm-request-id"
# The frame of an answer is counted in characters and sent in bytes, and a line break would end the header.
_SAFE = re.compile(r"[!-~]{1,128}")

_FORM = "application/x-www-form-urlencoded"
_REMEDY = (
    "POST a JSON object with Content-Type: application/json (curl --json, or curl -H 'Content-Type: "
    "application/json' -d)"
)


def read_request(sent: Mapping[str, Any], headers: Mapping[str, Any]) -> Request:
    """The request in ``sent``; a body that cannot be found is a mistake in it.

    Args:
        sent: an element of the list that TorchServe gives a handler: name of a parameter → its value. The value is
            bytes where TorchServe's decode_input_request is false.
        headers: the request's, with what TorchServe writes beside them: ``explain`` and ``describe``, "True" or
            "False", of a prediction by HTTP, and ``url_path``, the rest of the path behind the model's name.
    """
    explain = headers.get("explain")
    # Of requests to KServe's addresses TorchServe says no path.
    kserve = explain is not None and "url_path" not in headers
    # TorchServe's own question comes without a body; a client's POST always has one.
    if not sent and headers.get("describe") == "True":
        return Request(b"", headers, Ask.DESCRIPTION, kserve)
    body = sent["body"] if "body" in sent else sent.get("data")
    mistake = None
    if body is None or isinstance(body, str):
        try:
            body = _read_form(sent, headers) if body is None else _utf8(body)
        except RequestError as error:
            body, mistake = b"", error
    ask = Ask.EXPLANATION if explain == "True" else Ask.SCORES
    return Request(body, headers, ask, kserve, mistake, request_id_of(headers))


def request_id_of(headers: Mapping[str, Any]) -> str | None:
    """Return the id to give back; None if the client sent none, or one that no header should hold."""
    # TorchServe keeps a header's name as it was sent; these are the ways in which libraries write it.
    value = headers.get(REQUEST_ID) or headers.get("X-Dlrm-Request-Id") or headers.get("X-DLRM-Request-Id")
    return value if isinstance(value, str) and _SAFE.fullmatch(value) else None


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise RequestError(
            "the body holds half a surrogate pair, which is not Unicode; send valid UTF-8"
        ) from None


def _read_form(sent: Mapping[str, Any], headers: Mapping[str, Any]) -> bytes:
    """The JSON of a form, as ``curl -d`` sends it, if TorchServe kept it whole; RequestError if not.

    TorchServe splits a form at every ``&`` and at the first ``=`` of a part, decodes ``+`` and ``%``, and drops
    a last part without ``=``. So JSON with a ``=`` or a ``&`` behind it arrives as a key, and most JSON, which
    has neither, not at all: only the headers show that there was something.
    """
    keys = list(sent)
    first = next((i for i, key in enumerate(keys) if key.lstrip()[:1] == "{"), len(keys))
    text = "&".join(_part(key, sent[key]) for key in keys[first:])
    try:
        raw = text.encode()
        msgspec.json.decode(raw, type=msgspec.Raw)
    except (UnicodeEncodeError, UnicodeDecodeError, RecursionError, msgspec.DecodeError):
        raise RequestError(_problem(headers)) from None
    return raw


def _part(key: str, value: Any) -> str:
    text = value.decode("utf-8", "replace") if isinstance(value, (bytes, bytearray)) else str(value)
    return f"{key}={text}" if text else key


def _problem(headers: Mapping[str, Any]) -> str:
    values = {name.lower(): str(value) for name, value in headers.items()}
    if values.get("content-length") == "0":
        return f"there is no body; {_REMEDY}"
    if values.get("content-type", "").lower().startswith(_FORM):
        return f"the body was sent as a form (Content-Type: {_FORM}), of which TorchServe keeps only parts; {_REMEDY}"
    return f"there is no body, or it was sent as a form, of which TorchServe keeps only parts; {_REMEDY}"

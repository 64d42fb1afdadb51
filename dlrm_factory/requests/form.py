"""Bodies sent as a form, as ``curl -d`` does without a Content-Type."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from dlrm_factory.errors import RequestError

__all__ = ["read_form"]

_FORM = "application/x-www-form-urlencoded"
_REMEDY = (
    "POST a JSON object with Content-Type: application/json (curl --json, or curl -H 'Content-Type: "
    "application/json' -d)"
)


def read_form(request: Mapping[str, Any], headers: Mapping[str, Any]) -> bytes:
    """The JSON of a form, if TorchServe kept it whole; RequestError if not.

    TorchServe splits a form at every ``&`` and at the first ``=`` of a part, decodes ``+`` and ``%``, and drops
    a last part without ``=``. So JSON with a ``=`` or a ``&`` behind it arrives as a key, and most JSON, which
    has neither, not at all: only the headers show that there was something.
    """
    keys = list(request)
    first = next((i for i, key in enumerate(keys) if key.lstrip()[:1] == "{"), len(keys))
    text = "&".join(_part(key, request[key]) for key in keys[first:])
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

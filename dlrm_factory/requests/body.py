"""One request as TorchServe hands it over → the bytes of its body → the JSON object in them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import msgspec

from dlrm_factory.errors import LimitError, RequestError
from dlrm_factory.features import shown
from dlrm_factory.requests.form import read_form

__all__ = ["find_body", "read_body", "read_object"]

_DECODER = msgspec.json.Decoder()
_AT_BYTE = re.compile(r"\(byte (\d+)\)$")
_HALF_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_COMPRESSED = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}


def read_body(
    request: Mapping[str, Any], max_body_bytes: int, headers: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The body's JSON object. RequestError if it holds none, LimitError if it is too large."""
    return read_object(find_body(request, max_body_bytes, headers))


def find_body(
    request: Mapping[str, Any], max_body_bytes: int, headers: Mapping[str, Any] | None = None
) -> Any:
    """The body: bytes, or what Python's own decoder has made of it already.

    RequestError if there is none, LimitError if it is too large.

    Args:
        request: an element of the list that TorchServe gives a handler. Its value is bytes where TorchServe's
            decode_input_request is false.
        headers: the request's, if they are known.
    """
    raw = request["body"] if "body" in request else request.get("data")
    if raw is None:
        raw = read_form(request, headers or {})
    if isinstance(raw, str):
        raw = _utf8(raw)
    if isinstance(raw, (bytes, bytearray)):
        _check_size(len(raw), max_body_bytes)
        return bytes(raw)
    return raw


def read_object(raw: Any) -> dict[str, Any]:
    """The JSON object in ``raw``, see `find_body`; of a key written twice the last counts. RequestError if none."""
    body = _decode(raw) if isinstance(raw, bytes) else raw
    if not isinstance(body, dict):
        raise RequestError(f"the body is {shown(body)}; send a JSON object")
    return body


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise RequestError(
            "the body holds half a surrogate pair, which is not Unicode; send valid UTF-8"
        ) from None


def _check_size(size: int, max_body_bytes: int) -> None:
    if size > max_body_bytes:
        raise LimitError(
            f"the body has {size} bytes, over max_body_bytes {max_body_bytes}; send fewer samples a request, "
            "or raise serving.max_body_bytes in the declaration"
        )


def _decode(raw: bytes) -> Any:
    try:
        return _DECODER.decode(raw)
    except UnicodeDecodeError as error:
        problem = _compressed(raw) or f"is not UTF-8 ({error.reason})"
    except RecursionError:
        problem = "is nested too deeply"
    except msgspec.ValidationError:
        problem = "holds a number out of range, such as 1e999 or an integer of thousands of digits"
    except msgspec.DecodeError as error:
        problem = _what_is_wrong(raw, str(error))
    raise RequestError(f"the body {problem}; send one JSON object in UTF-8")


def _compressed(raw: bytes) -> str | None:
    names = [name for magic, name in _COMPRESSED.items() if raw.startswith(magic)]
    return f"is compressed with {names[0]}, which is not taken" if names else None


def _what_is_wrong(raw: bytes, message: str) -> str:
    if not raw.strip():
        return "is empty"
    if raw.startswith(b"\xef\xbb\xbf"):
        return "starts with a byte order mark"
    compressed = _compressed(raw)
    if compressed:
        return compressed
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff") or (len(raw) > 3 and 0 in raw[:4]):
        return "is not UTF-8 (it looks like UTF-16 or UTF-32)"
    if _HALF_SURROGATE.search(raw) and not _python_reads(raw):
        return "holds half a surrogate pair, such as \\ud800"
    return f"is not JSON: {message.removeprefix('JSON is malformed: ')}{_near(raw, message)}"


def _python_reads(raw: bytes) -> bool:
    """Whether ``raw`` is JSON whose strings are whole; json, unlike msgspec, takes half a surrogate pair."""
    try:
        json.dumps(json.loads(raw), ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    except (ValueError, RecursionError):
        pass
    return True


def _near(raw: bytes, message: str) -> str:
    """``', near "NaN}"'`` for a message that tells the byte."""
    at = _AT_BYTE.search(message)
    if at is None:
        return ""
    start = int(at[1])
    text = raw[start : start + 20].decode("utf-8", "replace")
    return f", near {json.dumps(text)}" if text else ""

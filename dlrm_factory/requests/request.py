"""One request: what was sent, and what is asked; its body → the JSON object in it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from enum import Enum
from typing import Any

import msgspec

from dlrm_factory.errors import LimitError, RequestError
from dlrm_factory.features import shown

__all__ = ["Ask", "Request", "read_bytes", "read_object"]

_DECODER = msgspec.json.Decoder()
_AT_BYTE = re.compile(r"\(byte (\d+)\)$")
_HALF_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_COMPRESSED = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}


class Ask(Enum):
    """Answer that a client asks for."""

    SCORES = "scores"
    EXPLANATION = "explanation"
    DESCRIPTION = "description"


class Request(msgspec.Struct, frozen=True, gc=False):
    """One request, whatever it came by.

    Fields:
        body: bytes as they were sent, or the object that another decoder has made of them.
        headers: of HTTP. The case of their names is the client's.
        ask: a description needs no body.
        error_key: an error carries its message under ``error`` too, where KServe's and Triton's clients read it.
        mistake: the error that answers it, if there is no body to read.
        id: that the client gave, by which labels may be joined later; None if it gave none.
    """

    body: Any = b""
    headers: Mapping[str, Any] = {}
    ask: Ask = Ask.SCORES
    error_key: bool = False
    mistake: RequestError | None = None
    id: str | None = None


def read_bytes(request: Request, max_body_bytes: int) -> Any:
    """Body of the request: bytes, or the object. RequestError if there is none, LimitError if it is too large."""
    if request.mistake is not None:
        raise request.mistake
    raw = request.body
    if not isinstance(raw, (bytes, bytearray)):
        return raw
    if len(raw) > max_body_bytes:
        raise LimitError(
            f"the body has {len(raw)} bytes, over max_body_bytes {max_body_bytes}; send fewer samples a request, "
            "or raise serving.max_body_bytes in the declaration"
        )
    return bytes(raw)


def read_object(raw: Any) -> dict[str, Any]:
    """The JSON object in ``raw``, see `read_bytes`; of a key written twice the last counts. RequestError if none."""
    body = _decode(raw) if isinstance(raw, bytes) else raw
    if not isinstance(body, dict):
        raise RequestError(f"the body is {shown(body)}; send a JSON object")
    return body


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
        problem = _problem(raw, str(error))
    raise RequestError(f"the body {problem}; send one JSON object in UTF-8")


def _compressed(raw: bytes) -> str | None:
    names = [name for magic, name in _COMPRESSED.items() if raw.startswith(magic)]
    return f"is compressed with {names[0]}, which is not taken" if names else None


def _problem(raw: bytes, message: str) -> str:
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
    """Tell if ``raw`` is JSON whose strings are whole; json, unlike msgspec, takes half a surrogate pair."""
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

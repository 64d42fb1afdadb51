"""The id by which a client knows an answer for its own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

__all__ = ["REQUEST_ID", "request_id_of"]

REQUEST_ID = "x-dlrm-request-id"
# The frame of an answer is counted in characters and sent in bytes, and a line break would end the header.
_SAFE = re.compile(r"[!-~]{1,128}")


def request_id_of(headers: Mapping[str, Any]) -> str | None:
    """Return the id to give back; None if the client sent none, or one that no header should hold."""
    # TorchServe keeps a header's name as it was sent; these are the ways in which libraries write it.
    value = headers.get(REQUEST_ID) or headers.get("X-Dlrm-Request-Id") or headers.get("X-DLRM-Request-Id")
    return value if isinstance(value, str) and _SAFE.fullmatch(value) else None

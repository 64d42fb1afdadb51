"""Request ids, by which a client knows that an answer is its own.

TorchServe can answer a request twice while workers are scaled away; on a kept connection every later answer would then
belong to the request before. A worker gives an id back, so that a client sees it.
"""

from __future__ import annotations

import secrets
from typing import Any

import httpx

__all__ = ["REQUEST_ID_HEADER", "belongs_to", "foreign_answer", "with_request_id"]

# TorchServe sets X-Request-Id itself, to an id of its own.
REQUEST_ID_HEADER = "x-dlrm-request-id"


def with_request_id(request: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of an httpx request with a new id in its headers."""
    return {**request, "headers": {**request.get("headers", {}), REQUEST_ID_HEADER: secrets.token_hex(8)}}


def belongs_to(response: httpx.Response, request: dict[str, Any]) -> bool:
    """Return True unless ``response`` bears another request's id. Errors of TorchServe itself bear none."""
    given = response.headers.get(REQUEST_ID_HEADER)
    return given is None or given == request["headers"][REQUEST_ID_HEADER]


def foreign_answer(response: httpx.Response) -> httpx.RemoteProtocolError:
    """Make the error for an answer that belongs to another request: as if the connection had broken."""
    return httpx.RemoteProtocolError("the answer belongs to another request", request=response.request)

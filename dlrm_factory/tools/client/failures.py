"""An answer that is not a success, or no answer → the error to raise."""

from __future__ import annotations

from typing import Any

import httpx

from dlrm_factory.tools.client.errors import (
    ClientError,
    InvalidRequest,
    ModelNotFound,
    NotReachable,
    Overloaded,
    Problem,
    ServerFault,
    TimedOut,
    TooLarge,
    Unauthorized,
)
from dlrm_factory.tools.client.tokens import is_refused

__all__ = ["error_of_answer", "error_of_silence"]

_MOST_CHARACTERS = 500


def error_of_answer(response: httpx.Response) -> ClientError:
    """The error for an answer whose status is not a success."""
    body = _body_of(response)
    status = response.status_code
    message = str(body.get("message") or response.text or "no message").strip()[:_MOST_CHARACTERS]
    if is_refused(response) or status in (401, 403):
        return Unauthorized(
            f"the server refuses the token ({message}); give token=…, or key_file=… and management_url=… "
            "so that an expired token is renewed",
            status=status,
        )
    if status in (400, 413):
        return _invalid(message, body, status)
    if status == 404:
        return ModelNotFound(f"{response.request.url.path}: {message}", status=status)
    if status in (429, 503):
        # TorchServe says "no worker" for a full queue too.
        return Overloaded(
            f"the server is overloaded: its queue is full, or no worker is ready ({message})", status=status
        )
    if status >= 500:
        return ServerFault(f"HTTP {status}: {message}", status=status)
    return ClientError(
        f"HTTP {status}: {message} (is {response.request.url.copy_with(path='/')} the right address?)",
        status=status,
    )


def error_of_silence(error: httpx.RequestError) -> ClientError:
    """The error for a request that got no answer."""
    address = error.request.url.copy_with(path="/", query=None)
    said = str(error) or type(error).__name__
    if isinstance(error, httpx.PoolTimeout):
        return TimedOut(
            "no connection was free in time; raise max_connections, or send fewer requests at once"
        )
    if isinstance(error, httpx.TimeoutException):
        return TimedOut(f"no answer from {address} in time ({type(error).__name__})")
    if isinstance(error, httpx.TransportError):
        return NotReachable(f"no server answers at {address} ({said})")
    return ServerFault(f"the answer from {address} cannot be read: {said}")


def _invalid(message: str, body: dict[str, Any], status: int) -> InvalidRequest:
    kind = TooLarge if status == 413 else InvalidRequest
    path = body.get("path")
    return kind(
        message, path=path if isinstance(path, str) else None, problems=_problems(body), status=status
    )


def _problems(body: dict[str, Any]) -> list[Problem]:
    listed = body.get("errors")
    return [
        Problem(path=str(each.get("path", "$")), message=str(each.get("message", "")))
        for each in (listed if isinstance(listed, list) else [])
        if isinstance(each, dict)
    ]


def _body_of(response: httpx.Response) -> dict[str, Any]:
    try:
        body = response.json()
    except (ValueError, RecursionError):
        return {}
    return body if isinstance(body, dict) else {}

"""Errors of a client, and the one that an answer or a missing answer stands for.

::

    DLRMError
    └── ClientError               the arguments cannot be used, or an answer is not one of the below
        ├── InvalidRequest        400: a value is wrong; also found before sending
        │   └── TooLarge          413: over a limit of the model or of the server
        ├── Unauthorized          the token is missing, wrong or expired
        ├── ModelNotFound         404: no such model or version there
        ├── Overloaded            503: the queue is full or no worker is ready, after all retries
        ├── ServerFault           another 5xx, or an answer that makes no sense
        └── NotReachable          nothing listens there, after all retries
            └── TimedOut          no answer in time
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from dlrm_factory.errors import DLRMError
from dlrm_factory.tools.client.tokens import is_refused

__all__ = [
    "ClientError",
    "InvalidRequest",
    "ModelNotFound",
    "NotReachable",
    "Overloaded",
    "Problem",
    "ServerFault",
    "TimedOut",
    "TooLarge",
    "Unauthorized",
    "error_of_answer",
    "error_of_silence",
]


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One mistake in a request. ``path`` is its JSONPath, e.g. ``$.instances[3].user_id``."""

    path: str
    message: str


class ClientError(DLRMError):
    """Base of every error of a client. ``status`` is the HTTP status, None where no answer came."""

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class InvalidRequest(ClientError):
    """A value of the request is wrong.

    ``path`` is the first mistake's, None where the server named none; ``problems`` holds all that it listed.
    """

    def __init__(
        self,
        message: str,
        *,
        path: str | None = None,
        problems: Sequence[Problem] = (),
        status: int | None = None,
    ) -> None:
        super().__init__(f"{path}: {message}" if path not in (None, "$") else message, status=status)
        self.path = path
        self.problems = tuple(problems) or (Problem(path=path or "$", message=message),)


class TooLarge(InvalidRequest):
    """The request is over a limit. Send fewer samples at once."""


class Unauthorized(ClientError):
    """The token is missing, wrong or expired, or cannot be read."""


class ModelNotFound(ClientError):
    """The server has no such model, or no such version of it."""


class Overloaded(ClientError):
    """The server's queue is full, or none of its workers is ready."""


class ServerFault(ClientError):
    """The server failed; its log says why."""


class NotReachable(ClientError):
    """No connection came about, or it broke."""


class TimedOut(NotReachable):
    """No answer came in time. The server may still be working on it, so it is not asked again."""


_MAX_CHARACTERS = 500


def error_of_answer(response: httpx.Response) -> ClientError:
    """The error for an answer whose status is not a success."""
    body = _body_of(response)
    status = response.status_code
    message = str(body.get("message") or response.text or "no message").strip()[:_MAX_CHARACTERS]
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

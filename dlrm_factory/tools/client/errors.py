"""What a client raises.

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

from dlrm_factory.errors import DLRMError

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

"""TorchServe's tokens: read from ``key_file.json``, sent with each request, renewed when they expire."""

from __future__ import annotations

import json
import time
from collections.abc import Generator
from pathlib import Path
from typing import Literal

import httpx

from dlrm_factory.errors import ServingError

__all__ = ["BearerAuth", "KeyFileAuth", "TokenKind", "is_refused", "read_key"]

TokenKind = Literal["inference", "management", "API"]

_ATTEMPTS = 3
# TorchServe writes the file in place, so for a moment a reader may meet half of it.
_READS, _PAUSE_S = 4, 0.02


def read_key(key_file: Path, kind: TokenKind) -> str:
    """One key of ``key_file``; ``"API"`` renews the others. Raises ServingError without one."""
    for read in range(_READS):
        try:
            return str(json.loads(key_file.read_text(encoding="utf-8"))[kind]["key"])
        except FileNotFoundError as error:
            raise ServingError(
                f"no token: {key_file} does not exist; TorchServe writes it where it starts"
            ) from error
        except ValueError as error:
            damage: Exception = error
        except (OSError, KeyError, TypeError) as error:
            damage = error
            break
        if read < _READS - 1:
            time.sleep(_PAUSE_S)
    raise ServingError(f"no {kind} token can be read from {key_file}: {damage!r}") from damage


def is_refused(response: httpx.Response) -> bool:
    """Whether TorchServe refuses the token: it answers 400, and says so in the body alone."""
    return response.status_code == 400 and b"InvalidKeyException" in response.content


class BearerAuth(httpx.Auth):
    """Sends one given token."""

    def __init__(self, token: str) -> None:
        self.header = f"Bearer {token}"

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        request.headers["Authorization"] = self.header
        yield request


class KeyFileAuth(httpx.Auth):
    """Sends the token of ``kind`` from ``key_file``. A refused one is read again, then renewed.

    Args:
        management: base URL of the management API, None where it is unknown: then nothing is renewed.
    """

    requires_response_body = True

    def __init__(self, key_file: Path, kind: TokenKind, management: str | None) -> None:
        self.key_file = key_file
        self.kind: TokenKind = kind
        self.management = management
        self._token: str | None = None

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        token = self._token or self._read()
        # More than twice, because others that share the file may renew the token at the same time.
        for attempt in range(_ATTEMPTS):
            request.headers["Authorization"] = f"Bearer {token}"
            response = yield request
            if not is_refused(response) or attempt == _ATTEMPTS - 1:
                return
            refused, token = token, self._read()
            if token == refused:
                if self.management is None:
                    return
                # The token has expired. TorchServe answers by writing the file anew.
                yield self._renewal(self.management, request)
                token = self._read()

    def _read(self) -> str:
        self._token = read_key(self.key_file, self.kind)
        return self._token

    def _renewal(self, management: str, request: httpx.Request) -> httpx.Request:
        headers = {"Authorization": f"Bearer {read_key(self.key_file, 'API')}"}
        # The extensions hold the time-outs; without them a request waits for ever.
        timeouts = {"timeout": request.extensions["timeout"]} if "timeout" in request.extensions else {}
        return httpx.Request(
            "GET",
            f"{management.rstrip('/')}/token",
            params={"type": self.kind},
            headers=headers,
            extensions=timeouts,
        )

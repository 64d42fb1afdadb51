"""Tokens of TorchServe, and the addresses to which they may be sent."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import os
import time
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import httpx
from filelock import lock_descriptor

from dlrm_factory.errors import ServingError

__all__ = [
    "BearerAuth",
    "KeyFileAuth",
    "TokenKind",
    "address_problem",
    "is_loopback",
    "is_refused",
    "read_key",
    "take_turns",
]


def is_loopback(url: str) -> bool:
    """True if ``url`` is on this machine."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def address_problem(url: str) -> str | None:
    """Problem of a server's base URL, for a message; None if there is none."""
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        return f"{url}: {error}"
    if parsed.scheme not in ("http", "https") or not parsed.host:
        return f"{url} is not like http://127.0.0.1:8080"
    return None


TokenKind = Literal["inference", "management", "API"]

# More than twice, because a program that does not wait for its turn may renew the token at the same time.
_ATTEMPTS = 5
# TorchServe writes the file in place, so for a moment a reader may meet half of it.
_READS, _PAUSE_S = 4, 0.02
# Whoever renews takes milliseconds; one that hangs must not keep the others for ever.
_MAX_TURN_S = 15.0

Pause = float  # seconds
Flow = Generator[httpx.Request | Pause, httpx.Response | None, None]


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
    """True if TorchServe refuses the token: TorchServe answers 400, and says so in the body alone."""
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

    A renewal ends the token before it, so all who share the file, in whatever process, renew one at a time, and
    whoever finds the token renewed meanwhile takes that one.

    Args:
        management: base URL of the management API, None where it is unknown: then nothing is renewed.
    """

    requires_response_body = True

    def __init__(self, key_file: Path, kind: TokenKind, management: str | None) -> None:
        self.key_file = key_file
        self.kind: TokenKind = kind
        self.management = management
        self._token: str | None = None

    def sync_auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        with closing(self._flow(request)) as flow:
            step = next(flow)
            while True:
                if isinstance(step, Pause):
                    time.sleep(step)
                    response = None
                else:
                    response = yield step
                    response.read()
                try:
                    step = flow.send(response)
                except StopIteration:
                    return

    async def async_auth_flow(self, request: httpx.Request) -> AsyncGenerator[httpx.Request, httpx.Response]:
        with closing(self._flow(request)) as flow:
            step = next(flow)
            while True:
                if isinstance(step, Pause):
                    await asyncio.sleep(step)
                    response = None
                else:
                    response = yield step
                    await response.aread()
                try:
                    step = flow.send(response)
                except StopIteration:
                    return

    def _flow(self, request: httpx.Request) -> Flow:
        """Requests to send, each answered by its response, and pauses, each answered by None."""
        token = self._token or self._read()
        for attempt in range(_ATTEMPTS):
            request.headers["Authorization"] = f"Bearer {token}"
            response = yield request
            assert response is not None
            if not is_refused(response) or attempt == _ATTEMPTS - 1:
                return
            refused, token = token, self._read()
            if token == refused:
                if self.management is None:
                    return
                yield from self._renew(refused, self.management, request)
                token = self._read()

    def _renew(self, refused: str, management: str, request: httpx.Request) -> Flow:
        """Once it is our turn: renew the token, unless another has done so. TorchServe writes the file anew."""
        with take_turns(self.key_file) as is_ours:
            given_up = time.monotonic() + _MAX_TURN_S
            while not is_ours() and time.monotonic() < given_up:
                yield _PAUSE_S
            if self._read() == refused:
                yield self._renewal(management, request)

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


@contextmanager
def take_turns(file: Path) -> Iterator[Callable[[], bool]]:
    """A function that says whether it is our turn to change ``file``: from its first True to the end of the block."""
    # The key file is its own lock: whoever may only read it and its folder takes turns too. A FileLock would write.
    try:
        descriptor = os.open(file, os.O_RDONLY)
    except OSError as error:
        raise ServingError(f"no token can be read from {file}: {error}") from error

    def is_ours() -> bool:
        try:
            return lock_descriptor(descriptor, blocking=False)
        except OSError:  # a file system without locks
            return True

    try:
        yield is_ours
    finally:
        os.close(descriptor)

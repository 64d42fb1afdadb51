"""Finds a server to ask, and asks it for predictions."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import httpx

from dlrm_factory.errors import ServingError
from dlrm_factory.tools.client.tokens import BearerAuth, KeyFileAuth, TokenKind, address_problem, is_loopback
from dlrm_factory.tools.server.management import http_client
from dlrm_factory.tools.server.rundir import RunDir
from dlrm_factory.tools.server.server import running_server

__all__ = ["Endpoint", "find_endpoint", "predict", "probe_of"]


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """Address for requests of one kind, with its token; ``local`` is the run directory of our server."""

    url: str
    auth: httpx.Auth | None
    local: RunDir | None = None


def find_endpoint(kind: TokenKind, *, run_dir: Path, url: str | None, token: str | None) -> Endpoint:
    """The server at ``url``, else the one that runs in ``run_dir``. Raises ServingError when none does.

    Without ``token``, a server on this machine gets the token of the run directory's key file, or of the one
    that a plain ``torchserve`` wrote into the working folder. Tokens of key files are never sent to another machine.
    """
    directory, state = RunDir.at(run_dir), running_server(run_dir)
    given = BearerAuth(token) if token else None
    own = {"inference": state.inference, "management": state.management}[kind] if state else None
    if state and own and url in (None, own):
        auth = KeyFileAuth(directory.key_file, kind, state.management) if state.token_auth else None
        return Endpoint(url=own, auth=given or auth, local=directory)
    if url is None:
        raise ServingError(
            f"no server runs in {directory.root}; start one with `dlrm serve`, or name one with "
            "--run-dir or --url"
        )
    _check_url(url)
    key_file = Path("key_file.json")
    if given is None and is_loopback(url) and key_file.is_file():
        return Endpoint(url=url, auth=KeyFileAuth(key_file, kind, url if kind == "management" else None))
    return Endpoint(url=url, auth=given)


def predict(
    endpoint: Endpoint, model: str, body: bytes, timeout: float = 120.0, version: str | None = None
) -> httpx.Response:
    """Post ``body`` (JSON) to ``/predictions/{model}``, or to one ``version`` of the model.

    Raises ServingError only when no answer comes.
    """
    with http_client(endpoint.url.rstrip("/"), endpoint.auth, timeout) as client:
        try:
            return client.post(
                "/".join(["/predictions", *(quote(part, safe="") for part in (model, version) if part)]),
                content=body,
                headers={"Content-Type": "application/json"},
            )
        except httpx.TimeoutException as error:
            raise ServingError(f"no answer from {endpoint.url} in {timeout:g} s") from error
        except httpx.TransportError as error:
            raise ServingError(
                f"no server answers at {endpoint.url} ({error or type(error).__name__})"
            ) from error


def probe_of(endpoint: Endpoint, model: str, patience: float = 0.05) -> Callable[[], None]:
    """Make a function that sends ``model`` a request of no samples and waits ``patience`` seconds at most."""

    def probe() -> None:
        with contextlib.suppress(ServingError):
            predict(endpoint, model, b'{"instances": []}', patience)

    return probe


def _check_url(url: str) -> None:
    problem = address_problem(url)
    if problem is not None:
        raise ServingError(f"--url {problem}")

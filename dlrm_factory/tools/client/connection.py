"""Connection that both clients share: addresses, tokens, patience."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import httpx

from dlrm_factory.tools.client.calls import Calls
from dlrm_factory.tools.client.canary import Canary, canary_source
from dlrm_factory.tools.client.errors import ClientError
from dlrm_factory.tools.client.retrying import Retry
from dlrm_factory.tools.client.tokens import BearerAuth, KeyFileAuth, TokenKind, address_problem, is_loopback

__all__ = ["Connection"]

_PATIENT, _NO_RETRY = Retry(), Retry(attempts=1)


class Connection(ABC):
    """Settings of a client, checked.

    Args:
        url: base URL of the inference API.
        model, version: whom to ask; the model's default version without ``version``.
        canary: a `Canary`, or the path of a server's ``rollout.json``, which `dlrm rollout --canary` writes: calls with
            a ``key`` of its share ask its version, and the default version once that is gone.
        management_url: base URL of the management API: needed to describe, and to renew expired tokens.
        token, management_token: tokens to send.
        key_file: TorchServe's ``key_file.json``, to take both tokens from. It is read again when a token is
            refused, and with ``management_url`` an expired token is renewed.
        timeout: seconds to wait for a connection, for sending and for each part of an answer.
        retry: how a request is repeated that met a full queue or a server that restarts; None for never.
        max_connections: the most open at once.
        transport: an httpx transport to use in place of the network.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8080",
        *,
        model: str = "dlrm",
        version: str | None = None,
        canary: Canary | str | Path | None = None,
        management_url: str | None = None,
        token: str | None = None,
        management_token: str | None = None,
        key_file: str | Path | None = None,
        timeout: float | httpx.Timeout = 30.0,
        retry: Retry | None = _PATIENT,
        max_connections: int = 100,
        transport: Any = None,
    ) -> None:
        addresses = {"url": url, "management_url": management_url}
        for name, value in addresses.items():
            if value is not None and (problem := address_problem(value)):
                raise ClientError(f"{name}: {problem}")
        if key_file is not None and (token or management_token):
            raise ClientError("give either tokens or a key_file, not both")
        if canary is not None and version is not None:
            raise ClientError("give either a version or a canary, not both")
        management = management_url.rstrip("/") if management_url else None
        self._retry = retry or _NO_RETRY
        self._calls = Calls(
            inference=url.rstrip("/"),
            management=management,
            inference_auth=_auth(token, key_file, "inference", management),
            management_auth=_auth(management_token, key_file, "management", management),
            model=model,
            version=version,
            canary=canary_source(canary, model),
        )
        self._open(
            timeout=timeout,
            limits=httpx.Limits(max_connections=max_connections, max_keepalive_connections=max_connections),
            # A proxy of the environment is not asked for what is on this machine.
            trust_env=not is_loopback(url),
            transport=transport,
        )

    @abstractmethod
    def _open(self, **arguments: Any) -> None:
        """Makes the httpx client with ``arguments``."""


def _auth(
    token: str | None, key_file: str | Path | None, kind: TokenKind, management: str | None
) -> httpx.Auth | None:
    if token:
        return BearerAuth(token.strip())
    return KeyFileAuth(Path(key_file), kind, management) if key_file is not None else None

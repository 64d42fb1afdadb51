"""A server of a few lines in place of TorchServe, for both clients."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from dlrm_factory.client import AsyncDLRMClient, DLRMClient, Retry

QUICK = Retry(attempts=4, first_delay=0.001, longest_delay=0.004)


class StandIn:
    """Gives the next of ``outcomes`` to each request (the last one for ever), and keeps what it was sent."""

    def __init__(self) -> None:
        self.outcomes: list[httpx.Response | Exception | Callable[[httpx.Request], httpx.Response]] = []
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        outcome = self.outcomes.pop(0) if len(self.outcomes) > 1 else self.outcomes[0]
        if isinstance(outcome, Exception):
            raise outcome
        if isinstance(outcome, httpx.Response):
            # A response can be read once only, and the last one is given again and again.
            return httpx.Response(outcome.status_code, content=outcome.content)
        return outcome(request)

    def answers(self, *outcomes: Any) -> None:
        """Plain data is a 200 with its JSON."""
        self.outcomes = [
            each
            if isinstance(each, (httpx.Response, Exception)) or callable(each)
            else httpx.Response(200, json=each)
            for each in outcomes
        ]

    @property
    def body(self) -> Any:
        """The last request's JSON."""
        return json.loads(self.requests[-1].content)


@pytest.fixture
def server() -> StandIn:
    return StandIn()


Ask = Callable[..., Any]


@pytest.fixture(params=["sync", "async"])
def ask(request: pytest.FixtureRequest, server: StandIn) -> Ask:
    """``ask("score", {settings}, inputs=…)``: one call of a new client, closed afterwards."""

    def with_sync(method: str, settings: dict[str, Any] | None = None, /, **arguments: Any) -> Any:
        with DLRMClient(**_settings(server, settings)) as client:
            return getattr(client, method)(**arguments)

    def with_async(method: str, settings: dict[str, Any] | None = None, /, **arguments: Any) -> Any:
        async def call() -> Any:
            async with AsyncDLRMClient(**_settings(server, settings)) as client:
                return await getattr(client, method)(**arguments)

        return asyncio.run(call())

    return with_sync if request.param == "sync" else with_async


def _settings(server: StandIn, settings: dict[str, Any] | None) -> dict[str, Any]:
    given = {"transport": httpx.MockTransport(server), "retry": QUICK, "management_url": "http://manage:81/"}
    return {"url": "http://infer:8000/", **given, **(settings or {})}

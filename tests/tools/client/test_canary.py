"""A key keeps its version, by the client library and by nginx."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import httpx
import pytest

from dlrm_factory.client import AsyncDLRMClient, Canary, ClientError, DLRMClient, Retry
from dlrm_factory.tools.client.canary import CanaryFile

KEYS = [f"user_{i}" for i in range(2000)]
AS_NGINX = [False, False, True, True, True, True, True, True, True]
CANARY = Canary(version="2.0", share=0.05)


def test_the_share_of_the_keys_asks_the_canary_and_a_key_always_the_same() -> None:
    taken = [key for key in KEYS if CANARY.version_for(key) == "2.0"]
    assert 0.04 < len(taken) / len(KEYS) < 0.06
    assert taken == [key for key in KEYS if CANARY.version_for(key) == "2.0"]
    more = Canary(version="2.0", share=0.2)
    assert all(more.version_for(key) for key in taken)
    assert [Canary(version="2.0", share=0.0).version_for(key) for key in KEYS[:50]] == [None] * 50
    assert None not in [Canary(version="2.0", share=1.0).version_for(key) for key in KEYS[:50]]


def test_keys_of_every_length_are_hashed_as_nginx_does() -> None:
    # As nginx 1.22 sent them: see tests/tools/rollout/test_proxy.py, which asks nginx where there is one.
    half = Canary(version="2.0", share=0.5)
    keys = ["", "a", "ab", "abc", "abcd", "abcde", "ü", "user_17", "x" * 1000]
    assert [half.version_for(key) is not None for key in keys] == AS_NGINX


def test_a_share_that_is_none() -> None:
    with pytest.raises(ClientError, match=r"share of a canary is 5; give 0 to 1"):
        Canary(version="2.0", share=5)
    with pytest.raises(ClientError, match="either a version or a canary"):
        DLRMClient(version="1.0", canary=CANARY)


class Versions:
    """A server with the default version, and 2.0 while ``canary`` is 200."""

    def __init__(self, canary: int = 200) -> None:
        self.canary = canary
        self.asked: list[str] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request.url.path)
        if request.url.path.endswith("/2.0") and self.canary != 200:
            return httpx.Response(self.canary, json={"code": self.canary, "message": "it is not there"})
        return httpx.Response(200, json={"predictions": [0.5]})


KEY = next(key for key in KEYS if CANARY.version_for(key))
OTHER = next(key for key in KEYS if CANARY.version_for(key) is None)


def test_calls_with_a_key_of_the_share_ask_the_canary() -> None:
    server = Versions()
    with DLRMClient(canary=CANARY, transport=httpx.MockTransport(server)) as client:
        for key in (KEY, OTHER, None):
            client.score(instances=[{}], key=key)
    assert server.asked == ["/predictions/dlrm/2.0", "/predictions/dlrm", "/predictions/dlrm"]


@pytest.mark.parametrize("status", [404, 503])
def test_a_canary_that_is_gone_leaves_its_share_to_the_default_version(status: int) -> None:
    server = Versions(status)
    expected = ["/predictions/dlrm/2.0", "/predictions/dlrm"]
    with DLRMClient(canary=CANARY, retry=None, transport=httpx.MockTransport(server)) as client:
        assert client.score(instances=[{}], key=KEY).tolist() == [0.5]
    assert server.asked == expected

    async def ask() -> list[float]:
        transport = httpx.MockTransport(server)
        async with AsyncDLRMClient(canary=CANARY, retry=Retry(attempts=1), transport=transport) as client:
            return (await client.score(instances=[{}], key=KEY)).tolist()

    assert asyncio.run(ask()) == [0.5]
    assert server.asked == expected * 2


def test_the_share_follows_the_file_of_a_rollout(tmp_path: Path) -> None:
    path = tmp_path / "rollout.json"
    now = [0.0]
    canary = CanaryFile(path, "dlrm", clock=lambda: now[0])
    assert canary.version_for(KEY) is None
    for written, expected in [
        ({"dlrm": {"canary": {"version": "2.0", "share": 0.05}}}, "2.0"),
        ({"dlrm": {"canary": None}}, None),
        ({"other": {"canary": {"version": "2.0", "share": 0.05}}}, None),
        ({"dlrm": {"canary": {"version": "3.0", "share": 1.0}}}, "3.0"),
        ("no object", None),
    ]:
        path.write_text(json.dumps(written))
        now[0] += 1.0
        assert canary.version_for(KEY) == expected
    # Looked at twice a second, not at each call.
    path.write_text(json.dumps({"dlrm": {"canary": {"version": "2.0", "share": 1.0}}}))
    assert canary.version_for(KEY) is None
    now[0] += 1.0
    assert canary.version_for(KEY) == "2.0"

"""Tokens against a stand-in for TorchServe that checks and renews them as it does."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from contextlib import contextmanager

import httpx
import pytest
from support.lock_holder import lock_holder

from dlrm_factory.errors import ServingError
from dlrm_factory.tools.client.tokens import KeyFileAuth, read_key, take_turns

REFUSED = {"code": 400, "type": "InvalidKeyException", "message": "Token Authorization failed."}


class StandIn:
    """Knows the valid tokens; writes key_file.json when asked to renew one."""

    def __init__(self, key_file):
        self.key_file = key_file
        self.keys = {"inference": "i1", "management": "m1", "API": "a1"}
        self.requests: list[str] = []
        self.renewing_takes_s = 0.0
        self.write()

    def write(self):
        self.key_file.write_text(json.dumps({kind: {"key": key} for kind, key in self.keys.items()}))

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request.url.path)
        renewing = request.url.path == "/token"
        key = self.keys["API" if renewing else "inference"]
        if request.headers["Authorization"] != f"Bearer {key}":
            return httpx.Response(400, json=REFUSED)
        if renewing:
            # As TorchServe does: the old token ends at once, the file follows.
            self.keys[request.url.params["type"]] = f"renewed for the {self.requests.count('/token')}. time"
            time.sleep(self.renewing_takes_s)
            self.write()
        return httpx.Response(200, content=request.content)


@pytest.fixture
def server(tmp_path):
    return StandIn(tmp_path / "key_file.json")


def post(server, management: str | None = "http://management"):
    auth = KeyFileAuth(server.key_file, "inference", management)
    with httpx.Client(transport=httpx.MockTransport(server), auth=auth) as client:
        return client.post("http://inference/predictions/dlrm", content=b"{}")


def test_a_good_token_is_sent_once(server):
    assert post(server).content == b"{}"
    assert server.requests == ["/predictions/dlrm"]


def test_an_expired_token_is_renewed_and_the_request_sent_again(server):
    server.keys["inference"] = "expired, so that i1 is refused"
    assert post(server).content == b"{}"
    assert server.requests == ["/predictions/dlrm", "/token", "/predictions/dlrm"]


def test_a_token_that_another_program_renewed_meanwhile_is_read_again(server):
    server.keys["inference"] = "i2"

    def answer(request: httpx.Request) -> httpx.Response:
        response = server(request)
        server.write()
        return response

    auth = KeyFileAuth(server.key_file, "inference", "http://management")
    with httpx.Client(transport=httpx.MockTransport(answer), auth=auth) as client:
        assert client.post("http://inference/predictions/dlrm", content=b"{}").status_code == 200
    assert "/token" not in server.requests


def test_of_many_that_share_the_file_one_renews(server):
    """Each with a lock of its own on the file, as in processes of their own."""
    server.keys["inference"] = "expired"
    server.renewing_takes_s = 0.1
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(post(server).content)) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [b"{}"] * 12
    assert server.requests.count("/token") == 1


def test_of_many_tasks_one_renews_while_the_others_go_on(server):
    server.keys["inference"] = "expired"

    async def answer(request: httpx.Request) -> httpx.Response:
        await asyncio.sleep(0.05)
        return server(request)

    async def ask() -> bytes:
        auth = KeyFileAuth(server.key_file, "inference", "http://management")
        async with httpx.AsyncClient(transport=httpx.MockTransport(answer), auth=auth) as client:
            return (await client.post("http://inference/predictions/dlrm", content=b"{}")).content

    async def ask_all() -> list[bytes]:
        return await asyncio.gather(*(ask() for _ in range(12)))

    assert asyncio.run(ask_all()) == [b"{}"] * 12
    assert server.requests.count("/token") == 1


@contextmanager
def turn(key_file):
    with take_turns(key_file) as is_ours:
        assert is_ours()
        yield


def test_a_program_that_was_killed_while_it_renewed_blocks_nobody(server):
    server.keys["inference"] = "expired"
    answers = []
    with lock_holder(lambda: turn(server.key_file)) as holder:
        waiting = threading.Thread(target=lambda: answers.append(post(server).content))
        waiting.start()
        waiting.join(0.3)
        assert "/token" not in server.requests
        holder.kill()
        waiting.join(60)
    assert answers == [b"{}"]
    assert server.requests.count("/token") == 1


def test_who_may_only_read_the_file_takes_turns_too(server, tmp_path):
    server.key_file.chmod(0o400)
    tmp_path.chmod(0o500)
    before = sorted(path.name for path in tmp_path.iterdir())
    try:
        with take_turns(server.key_file) as is_ours, take_turns(server.key_file) as is_another_ones:
            assert is_ours()
            assert not is_another_ones()
            assert is_ours()
        with turn(server.key_file):
            pass
        assert sorted(path.name for path in tmp_path.iterdir()) == before
    finally:
        tmp_path.chmod(0o700)


def test_a_renewal_that_fails_gives_the_turn_back(server):
    server.keys["inference"] = "expired"

    def break_off(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/token":
            raise httpx.ConnectError("refused", request=request)
        return server(request)

    auth = KeyFileAuth(server.key_file, "inference", "http://management")
    with (
        httpx.Client(transport=httpx.MockTransport(break_off), auth=auth) as client,
        pytest.raises(httpx.ConnectError),
    ):
        client.post("http://inference/predictions/dlrm", content=b"{}")
    assert post(server).content == b"{}"


def test_without_a_management_address_the_refusal_is_told(server):
    server.keys["inference"] = "expired"
    assert post(server, management=None).json() == REFUSED
    assert server.requests == ["/predictions/dlrm"]


def test_a_missing_or_damaged_key_file(tmp_path):
    with pytest.raises(ServingError, match="does not exist"):
        read_key(tmp_path / "none", "inference")
    (tmp_path / "bad").write_text('{"inference": 3}')
    with pytest.raises(ServingError, match="no inference token can be read"):
        read_key(tmp_path / "bad", "inference")

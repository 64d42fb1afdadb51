"""Tokens against a stand-in for TorchServe that checks and renews them as it does."""

from __future__ import annotations

import json

import httpx
import pytest

from dlrm_factory.client.tokens import KeyFileAuth, read_key
from dlrm_factory.errors import ServingError

REFUSED = {"code": 400, "type": "InvalidKeyException", "message": "Token Authorization failed."}


class StandIn:
    """Knows the valid tokens; writes key_file.json when asked to renew one."""

    def __init__(self, key_file):
        self.key_file = key_file
        self.keys = {"inference": "i1", "management": "m1", "API": "a1"}
        self.requests: list[str] = []
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
            self.keys[request.url.params["type"]] = "i-renewed"
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

    class Reader(KeyFileAuth):
        def auth_flow(self, request):
            flow = super().auth_flow(request)
            response = yield next(flow)
            server.write()
            yield flow.send(response)

    auth = Reader(server.key_file, "inference", "http://management")
    with httpx.Client(transport=httpx.MockTransport(server), auth=auth) as client:
        assert client.post("http://inference/predictions/dlrm", content=b"{}").status_code == 200
    assert "/token" not in server.requests


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

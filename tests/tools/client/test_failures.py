"""Answers that are errors, no answers, and what is tried again."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx
import pytest

from dlrm_factory.client import (
    ClientError,
    DLRMClient,
    InvalidRequest,
    ModelNotFound,
    NotReachable,
    Overloaded,
    Problem,
    Retry,
    ServerFault,
    TimedOut,
    TooLarge,
    Unauthorized,
)
from dlrm_factory.errors import DLRMError

FULL = {
    "code": 503,
    "type": "ServiceUnavailableException",
    "message": 'Model "dlrm" has no worker to serve inference request.',
}
GOOD = {"predictions": [0.5]}


def refuse(status, **body):
    return httpx.Response(status, json={"code": status, **body})


@pytest.mark.parametrize(
    ("answer", "kind", "message"),
    [
        (refuse(400, type="RequestError", message="id 7", path="$.a"), InvalidRequest, r"^\$\.a: id 7$"),
        (refuse(400, type="RequestError", message="no body", path="$"), InvalidRequest, "^no body$"),
        (refuse(413, type="LimitError", message="over", path="$.a"), TooLarge, r"^\$\.a: over$"),
        (refuse(413, type="RequestEntityTooLarge", message="big"), TooLarge, "^big$"),
        (
            refuse(400, type="InvalidKeyException", message="Token fails"),
            Unauthorized,
            "Token fails.*key_file",
        ),
        (httpx.Response(403, text="proxy"), Unauthorized, "proxy"),
        (refuse(404, type="ModelNotFoundException", message="not found"), ModelNotFound, "/dlrm: not found"),
        (refuse(503, **FULL), Overloaded, "queue is full, or no worker.*has no worker"),
        (httpx.Response(429), Overloaded, "no message"),
        (refuse(500, type="InternalError", message="nan"), ServerFault, "^HTTP 500: nan$"),
        (httpx.Response(502, text="<html>"), ServerFault, "<html>"),
        (refuse(405, message="not allowed"), ClientError, r"not allowed \(is http://infer:8000/ the right"),
        (httpx.Response(302, text="moved"), ClientError, "HTTP 302: moved"),
        (httpx.Response(400, json=[1]), InvalidRequest, "1"),
        (httpx.Response(400, content=b"\xff" * 9000), InvalidRequest, "\ufffd"),
    ],
)
def test_each_answer_has_its_error(ask, server, answer, kind, message):
    server.answers(answer)
    with pytest.raises(kind, match=message) as caught:
        ask("score", instances=[{}])
    assert type(caught.value) is kind
    assert caught.value.status == answer.status_code
    assert isinstance(caught.value, DLRMError)
    assert len(str(caught.value)) < 1000


def test_every_mistake_that_the_server_lists_is_kept(ask, server):
    errors = [{"message": "id 7", "path": "$.a"}, {"message": "id 8", "path": "$.b"}]
    server.answers(refuse(400, type="RequestError", message="id 7 (and 1 other)", path="$.a", errors=errors))
    with pytest.raises(InvalidRequest) as caught:
        ask("score", instances=[{}])
    assert caught.value.path == "$.a"
    assert caught.value.problems == (Problem(path="$.a", message="id 7"), Problem(path="$.b", message="id 8"))


def broken(kind, said="gone"):
    def fail(request):
        raise kind(said, request=request)

    return fail


GONE = "the worker that had this request is gone; send it again"
LOST = [refuse(status, type="InternalServerException", message="Worker died.") for status in (500, 507)]
# A worker's guard answers, or TorchServe with its words.
GUARDED = [refuse(503, type=kind, message=GONE) for kind in ("WorkerLost", "InternalServerException")]


@pytest.mark.parametrize(
    "first",
    [refuse(503, **FULL), broken(httpx.ConnectError), broken(httpx.RemoteProtocolError), *LOST, *GUARDED],
)
def test_what_passes_is_tried_again(ask, server, first):
    server.answers(first, first, GOOD)
    assert ask("score", instances=[{}]).tolist() == [0.5]
    assert len(server.requests) == 3
    assert len({request.content for request in server.requests}) == 1


@pytest.mark.parametrize(("lost", "said"), [(LOST, r"Worker died\."), (GUARDED, GONE)])
def test_a_request_that_ends_workers_does_not_end_them_all(ask, server, lost, said):
    server.answers(*lost)
    with pytest.raises((ServerFault, Overloaded), match=said):
        ask("score", {"retry": Retry(attempts=10, first_delay=0.001, longest_delay=0.001)}, instances=[{}])
    assert len(server.requests) == 4


def test_trying_again_comes_to_an_end(ask, server):
    server.answers(refuse(503, **FULL))
    with pytest.raises(Overloaded):
        ask("score", instances=[{}])
    assert len(server.requests) == 4
    server.answers(broken(httpx.ConnectError, "refused"))
    with pytest.raises(NotReachable, match=r"no server answers at http://infer:8000/ \(refused"):
        ask("score", {"retry": None}, instances=[{}])
    assert len(server.requests) == 5


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (refuse(500, message="x"), ServerFault),
        (refuse(400, message="x"), InvalidRequest),
        (broken(httpx.ReadTimeout), TimedOut),
        (broken(httpx.PoolTimeout), TimedOut),
        (broken(httpx.UnsupportedProtocol), NotReachable),
        (broken(httpx.DecodingError), ServerFault),
    ],
)
def test_the_rest_is_not_tried_again(ask, server, answer, kind):
    server.answers(answer)
    with pytest.raises(kind):
        ask("score", instances=[{}])
    assert len(server.requests) == 1


def test_pauses_grow_up_to_a_limit_and_are_not_all_alike():
    retry = Retry(attempts=8, first_delay=0.1, longest_delay=1.0)
    for _ in range(20):
        pauses = list(retry.delays())
        most = [0.1, 0.2, 0.4, 0.8, 1.0, 1.0, 1.0]
        assert all(limit / 2 <= pause <= limit for pause, limit in zip(pauses, most, strict=True))
    assert list(retry.delays()) != pauses
    assert list(Retry(attempts=1).delays()) == []


def write_keys(path, inference, management="m1"):
    keys = {"inference": inference, "management": management, "API": "a1"}
    path.write_text(json.dumps({kind: {"key": key} for kind, key in keys.items()}))


def test_each_api_gets_its_token(ask, server, tmp_path):
    write_keys(tmp_path / "key_file.json", "i1")
    given = {"token": " i1\n", "management_token": "m1"}
    for settings in (given, {"key_file": str(tmp_path / "key_file.json")}):
        server.answers(GOOD)
        ask("score", settings, instances=[{}])
        assert server.requests[-1].headers["Authorization"] == "Bearer i1"
        server.answers([{"modelName": "dlrm", "modelVersion": "1", "workers": []}])
        ask("describe", settings)
        assert server.requests[-1].headers["Authorization"] == "Bearer m1"


def test_an_expired_token_is_renewed(ask, server, tmp_path):
    key_file = tmp_path / "key_file.json"
    write_keys(key_file, "old")

    def answer(request):
        if request.url.path == "/token":
            assert str(request.url) == "http://manage:81/token?type=inference"
            assert request.headers["Authorization"] == "Bearer a1"
            assert request.extensions["timeout"]["read"] == 30.0
            write_keys(key_file, "new")
            return httpx.Response(200)
        if request.headers["Authorization"] != "Bearer new":
            return refuse(400, type="InvalidKeyException", message="Token Authorization failed.")
        return httpx.Response(200, json=GOOD)

    server.answers(answer)
    assert ask("score", {"key_file": key_file}, instances=[{}]).tolist() == [0.5]
    paths = [request.url.path for request in server.requests]
    assert paths == ["/predictions/dlrm", "/token", "/predictions/dlrm"]


def test_a_renewal_that_changes_nothing_is_not_taken_for_an_answer(ask, server, tmp_path):
    write_keys(tmp_path / "key_file.json", "stale copy")

    def answer(request):
        if request.url.path == "/token":
            return httpx.Response(200, json=GOOD)
        return refuse(400, type="InvalidKeyException", message="Token Authorization failed.")

    server.answers(answer)
    with pytest.raises(Unauthorized, match="refuses the token"):
        ask("score", {"key_file": tmp_path / "key_file.json"}, instances=[{}])


def test_no_key_file(ask, server, tmp_path):
    with pytest.raises(Unauthorized, match="does not exist"):
        ask("score", {"key_file": tmp_path / "none.json"}, instances=[{}])


class Slow(BaseHTTPRequestHandler):
    def do_POST(self):
        time.sleep(0.5)
        self.close_connection = True

    def log_message(self, *_):
        pass


def test_over_real_sockets():
    """Silence, a closed port."""
    with HTTPServer(("127.0.0.1", 0), Slow) as server:
        url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        with DLRMClient(url, timeout=0.1) as client, pytest.raises(TimedOut, match="in time"):
            client.score(instances=[])
        thread.join()
    with DLRMClient(url, retry=Retry(attempts=2, first_delay=0.01)) as client, pytest.raises(NotReachable):
        client.score(instances=[])

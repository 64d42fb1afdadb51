"""Bodies at and over the limit, many at once, at a real TorchServe: each gets an answer, and good requests go on."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import httpx
import msgspec
import pytest
from support.batches import random_state
from support.server import ask, serving

from dlrm_factory.config import ServingOptions, tiny
from dlrm_factory.tools.archive.sealing import archive_model
from dlrm_factory.tools.server import RunningServer
from dlrm_factory.tools.server.settings import load_properties
from dlrm_factory.weights.checkpoint import save_checkpoint

pytestmark = pytest.mark.integration

LIMIT = 1_000_000
MANY = 12
JSON = {"Content-Type": "application/json"}
GOOD = {"instances": [{"price": 0.5, "user_id": "u1", "item_tags": [3, 9]}]}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("large")
    declaration = msgspec.structs.replace(tiny(), serving=ServingOptions(max_body_bytes=LIMIT, compile="off"))
    save_checkpoint(folder / "tiny.safetensors", declaration, random_state(declaration))
    archive_model(
        folder / "tiny.safetensors", folder / "store" / "tiny", model_name="tiny", archive_format="directory"
    )
    with serving(folder / "store", "tiny=tiny", run_dir=folder / "run") as running:
        yield running


def body_of(size: int) -> bytes:
    """A valid body of ``size`` bytes: one id that is a long text."""
    empty = json.dumps({"instances": [{"user_id": ""}]})
    return empty.replace('""', '"' + "x" * (size - len(empty)) + '"').encode()


def post(client: httpx.Client, body: bytes, **headers: str) -> httpx.Response:
    return client.post("/predictions/tiny", content=body, headers={**JSON, **headers})


def test_the_front_end_follows_the_model(server: RunningServer) -> None:
    found = load_properties(server.run_dir.config_file)
    assert LIMIT < int(found["max_request_size"]) < LIMIT + 100_000


@pytest.mark.parametrize(("size", "status"), [(LIMIT, 200), (LIMIT + 1, 413), (LIMIT * 20, 413)])
def test_many_at_once(client: httpx.Client, size: int, status: int) -> None:
    right = ask(client, "tiny", GOOD)
    body = body_of(size)
    assert len(body) == size
    with ThreadPoolExecutor(MANY) as pool:
        large = [pool.submit(post, client, body) for _ in range(MANY)]
        for _ in range(10):
            assert ask(client, "tiny", GOOD) == right
        assert [each.result().status_code for each in large] == [status] * MANY
    assert ask(client, "tiny", GOOD) == right


def test_a_chunked_body_over_the_limit(client: httpx.Client) -> None:
    def pieces() -> Iterator[bytes]:
        for _ in range(30):
            yield b"x" * 100_000

    try:
        response = client.post("/predictions/tiny", content=pieces(), headers=JSON)
        assert response.status_code == 413
    except httpx.NetworkError:
        pass  # the answer was lost: TorchServe closed the connection while the client still sent
    ask(client, "tiny", GOOD)


def test_a_client_that_asks_first_is_told_before_it_sends(
    server: RunningServer, client: httpx.Client
) -> None:
    token = json.loads(server.run_dir.key_file.read_text())["inference"]["key"]
    url = urlsplit(server.state.inference)
    assert url.hostname
    assert url.port
    head = (
        "POST /predictions/tiny HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer {token}\r\nContent-Length: {LIMIT * 20}\r\nExpect: 100-continue\r\n\r\n"
    )
    with socket.create_connection((url.hostname, url.port), timeout=30) as connection:
        connection.sendall(head.encode())
        assert connection.recv(1000).startswith(b"HTTP/1.1 413 ")
    ask(client, "tiny", GOOD)

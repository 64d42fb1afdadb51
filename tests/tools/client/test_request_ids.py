"""Answers that have slipped to the next request of a connection are never taken."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Iterator

import httpx
import pytest

from dlrm_factory.client import AsyncDLRMClient, DLRMClient, NotReachable, Retry
from dlrm_factory.tools.client.calls import REQUEST_ID_HEADER, with_request_id
from handler.request import REQUEST_ID, request_id_of

QUICK = Retry(attempts=4, first_delay=0.001, longest_delay=0.004)


class Slipping:
    """A server on kept connections that answers the second request of each twice, as TorchServe can."""

    def __init__(self) -> None:
        self.connections = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as received:
            late, count = b"", 0
            while first := received.readline():
                headers = {}
                while (line := received.readline().strip()) != b"":
                    name, _, value = line.partition(b": ")
                    headers[name.lower().decode()] = value.decode()
                body = json.loads(received.read(int(headers["content-length"])))
                scores = json.dumps({"predictions": [row["price"] for row in body["instances"]]}).encode()
                answer = (
                    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
                    b"%b: %b\r\nContent-Length: %d\r\n\r\n%b"
                ) % (REQUEST_ID_HEADER.encode(), headers[REQUEST_ID_HEADER].encode(), len(scores), scores)
                count += 1
                assert first.startswith(b"POST")
                try:
                    connection.sendall(late or answer)
                except OSError:
                    return
                # From here on each answer is that of the request before.
                late = answer if count >= 2 else b""


@pytest.fixture
def slipping() -> Iterator[Slipping]:
    server = Slipping()
    yield server
    server.close()


def test_no_task_takes_an_answer_of_another_request(slipping):
    async def scores():
        async with AsyncDLRMClient(slipping.url, retry=QUICK) as client:
            return [(await client.score(instances=[{"price": price}])).tolist() for price in range(20)]

    assert asyncio.run(scores()) == [[price] for price in range(20)]
    assert slipping.connections == 10


def test_the_connection_of_a_foreign_answer_is_closed(slipping):
    with DLRMClient(slipping.url, retry=QUICK) as client:
        found = [client.score(instances=[{"price": price}]).tolist() for price in range(20)]
    assert found == [[price] for price in range(20)]
    # Two requests are answered rightly on each, the third finds out.
    assert slipping.connections == 10


def test_the_worker_gives_back_what_the_client_sends():
    assert REQUEST_ID_HEADER == REQUEST_ID
    assert request_id_of(with_request_id({})["headers"]) is not None


def test_without_another_attempt_it_is_an_error(ask, server):
    server.answers(
        lambda request: httpx.Response(200, json={"predictions": [0.5]}, headers={REQUEST_ID_HEADER: "x"})
    )
    with pytest.raises(NotReachable, match="belongs to another request"):
        ask("score", {"retry": None}, instances=[{}])


def test_every_attempt_has_an_id_of_its_own_and_answers_without_one_are_taken(ask, server):
    first = httpx.Response(503, json={"message": "no worker"})
    server.answers(first, first, {"predictions": [0.5]})
    assert ask("score", instances=[{}]).tolist() == [0.5]
    ids = [request.headers[REQUEST_ID_HEADER] for request in server.requests]
    assert len(set(ids)) == 3
    assert all(len(each) == 16 for each in ids)

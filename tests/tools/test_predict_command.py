"""``dlrm predict`` against a server that keeps what it was sent."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from dlrm_factory.tools.cli.main import app


class Keeper(HTTPServer):
    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        super().__init__(("127.0.0.1", 0), _Handler)


class _Handler(BaseHTTPRequestHandler):
    server: Keeper

    def do_POST(self) -> None:
        self.server.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture
def keeper() -> Iterator[Keeper]:
    server = Keeper()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def predict(keeper: Keeper, folder: Path, body: str, *options: str) -> tuple[int, str]:
    (folder / "request.json").write_text(body)
    url = f"http://127.0.0.1:{keeper.server_port}"
    arguments = ["predict", str(folder / "request.json"), "--url", url, "--run-dir", str(folder), *options]
    found = CliRunner().invoke(app, arguments)
    return found.exit_code, found.output + str(found.exception or "")


def test_a_request_is_sent_as_it_is(keeper: Keeper, tmp_path: Path) -> None:
    body = '{"instances": [ {"id": 45821459} ]}'
    assert predict(keeper, tmp_path, body)[0] == 0
    assert keeper.bodies == [body.encode()]


def test_options_say_what_is_asked_for(keeper: Keeper, tmp_path: Path) -> None:
    body = {"candidates": [{"id": 2**63 - 1}], "outputs": ["x"]}
    options = ("--outputs", "click, tower", "--rank-by", "click * price")
    assert predict(keeper, tmp_path, json.dumps(body), *options)[0] == 0
    assert json.loads(keeper.bodies[0]) == {
        **body,
        "outputs": ["click", "tower"],
        "rank_by": "click * price",
    }


@pytest.mark.parametrize(("body", "said"), [("[1]", "is not a JSON object"), ("{", "is not JSON")])
def test_options_need_an_object(keeper: Keeper, tmp_path: Path, body: str, said: str) -> None:
    status, output = predict(keeper, tmp_path, body, "--outputs", "click")
    assert status != 0
    assert said in output
    assert keeper.bodies == []

"""The proxy of a pod: `dlrm-proxy` with Debian's nginx, before a server of a few lines."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from dlrm_factory.tools.server.settings import free_ports

IMAGE = Path(__file__).parents[2] / "scripts" / "deploy" / "image"
TOKEN = "a+b.c/D0123456789-_~0123456789="
with_nginx = pytest.mark.skipif(not Path("/usr/sbin/nginx").exists(), reason="nginx is not installed")


class Upstream(BaseHTTPRequestHandler):
    """Answers with the body and the headers it was sent; POST /slow only once it is let go."""

    protocol_version = "HTTP/1.1"
    arrived = threading.Event()
    go = threading.Event()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/slow":
            self.arrived.set()
            self.go.wait(30)
        answer = json.dumps({"bytes": len(body), "authorization": self.headers["Authorization"]}).encode()
        self.send_response(400 if self.path == "/wrong" else 200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@pytest.fixture
def upstream() -> Iterator[int]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Upstream) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        Upstream.arrived.clear()
        Upstream.go.clear()
        yield server.server_port
        server.shutdown()


def start(folder: Path, tokens: dict[str, str], *, port: int = 1, upstream: int = 1) -> subprocess.Popen[str]:
    """`dlrm-proxy` with its files in ``folder``, and the ports given."""
    conf = (IMAGE / "nginx.conf").read_text()
    conf = re.sub("/run/dlrm/|/tmp/", f"{folder}/", conf)
    conf = conf.replace("0.0.0.0:8000", f"127.0.0.1:{port}").replace(
        "127.0.0.1:8080", f"127.0.0.1:{upstream}"
    )
    (folder / "nginx.conf").write_text(conf)
    (folder / "tokens").mkdir()
    for name, token in tokens.items():
        (folder / "tokens" / name).write_text(token)
    environment = os.environ | {
        "DLRM_TOKENS": str(folder / "tokens"),
        "DLRM_PROXY_CONF": str(folder / "nginx.conf"),
        "DLRM_PROXY_RUN": str(folder),
        "DLRM_PROXY_EVERY": "0.2",
    }
    return subprocess.Popen([IMAGE / "proxy"], env=environment, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize(
    ("tokens", "says"),
    [
        ({}, "no token in {folder}: mount a Secret with one file a client"),
        ({"web": "short"}, 'token "web" must be 24 to 512 letters, digits'),
        ({"web": f'{TOKEN}" 1;'}, 'token "web" must be 24 to 512 letters, digits'),
        ({"we b": TOKEN}, 'the name of token "we b" may have letters'),
    ],
)
def test_bad_tokens_are_told_and_start_nothing(tmp_path: Path, tokens: dict[str, str], says: str) -> None:
    proxy = start(tmp_path, tokens)
    said = proxy.communicate(timeout=30)[1]
    assert proxy.returncode == 1
    assert f"dlrm-proxy: {says.format(folder=tmp_path / 'tokens')}" in said
    assert TOKEN not in said


@pytest.fixture
def proxy(tmp_path: Path, upstream: int) -> Iterator[tuple[int, subprocess.Popen[str], Path]]:
    """Port, process and folder of a proxy that answers."""
    (port,) = free_ports(1)
    process = start(tmp_path, {"web": TOKEN + "\n"}, port=port, upstream=upstream)
    try:
        until(lambda: live(port) or process.poll() is not None)
        assert process.poll() is None
        yield port, process, tmp_path
    finally:
        process.terminate()
        print(process.communicate(timeout=30)[1])


def until(true: Callable[[], bool]) -> None:
    for _ in range(300):
        if true():
            return
        time.sleep(0.1)
    raise AssertionError("not within 30 s")


def live(port: int) -> bool:
    try:
        return ask(port, path="/proxy/live", method="GET")[0] == 200
    except OSError:
        return False


def ask(
    port: int, authorization: str | None = None, *, path: str = "/", method: str = "POST", size: int = 10
) -> tuple[int, dict[str, object], http.client.HTTPMessage]:
    """Status, JSON and headers of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    headers = {} if authorization is None else {"Authorization": authorization}
    connection.request(method, path, body=b"x" * size if method == "POST" else None, headers=headers)
    answer = connection.getresponse()
    body = json.loads(answer.read())
    connection.close()
    return answer.status, body, answer.headers


@with_nginx
def test_the_token_opens_and_nothing_else(proxy: tuple[int, subprocess.Popen[str], Path]) -> None:
    port, _, folder = proxy
    assert ask(port, f"Bearer {TOKEN}", size=300_000)[:2] == (200, {"bytes": 300_000, "authorization": None})
    assert ask(port, f"bearer {TOKEN}")[0] == 200
    assert ask(port, f"Bearer {TOKEN}", path="/wrong")[0] == 400  # the server's own answer
    wrong = [None, "", TOKEN, f"Bearer {TOKEN.upper()}", f"Bearer {TOKEN}x", f"Bearer x{TOKEN}"]
    wrong += [
        f"Bearer {TOKEN.replace('.', 'x')}",
        f"Bearer {TOKEN.replace('+', 'a')}",
        f"Basic {TOKEN}",
        "Bearer ",
    ]
    for authorization in wrong:
        status, body, headers = ask(port, authorization)
        assert (status, body["type"], headers["WWW-Authenticate"]) == (401, "Unauthorized", "Bearer"), (
            authorization
        )
    assert (folder / "tokens.conf").stat().st_mode & 0o077 == 0


@with_nginx
def test_tokens_are_replaced_while_it_runs(proxy: tuple[int, subprocess.Popen[str], Path]) -> None:
    port, process, folder = proxy
    other = TOKEN[::-1]
    (folder / "tokens" / "app").write_text(other)
    until(lambda: ask(port, f"Bearer {other}")[0] == 200)
    assert ask(port, f"Bearer {TOKEN}")[0] == 200
    (folder / "tokens" / "web").unlink()
    until(lambda: ask(port, f"Bearer {TOKEN}")[0] == 401)
    (folder / "tokens" / "app").write_text("short")  # refused: those before stay
    time.sleep(1)
    assert ask(port, f"Bearer {other}")[0] == 200
    assert process.poll() is None


@with_nginx
def test_a_server_that_is_away_is_a_503(tmp_path: Path) -> None:
    port, nobody = free_ports(2)
    process = start(tmp_path, {"web": TOKEN}, port=port, upstream=nobody)
    try:
        until(lambda: live(port))
        status, body, headers = ask(port, f"Bearer {TOKEN}")
        assert (status, body["code"], headers["Retry-After"]) == (503, 503, "1")
    finally:
        process.terminate()
        process.communicate(timeout=30)


@with_nginx
def test_sigterm_lets_requests_finish(proxy: tuple[int, subprocess.Popen[str], Path]) -> None:
    port, process, _ = proxy
    answers: list[int] = []
    slow = threading.Thread(target=lambda: answers.append(ask(port, f"Bearer {TOKEN}", path="/slow")[0]))
    slow.start()
    assert Upstream.arrived.wait(30)
    process.send_signal(signal.SIGTERM)
    until(lambda: not live(port))
    assert process.poll() is None
    Upstream.go.set()
    slow.join(30)
    assert answers == [200]
    assert process.wait(30) == 0


def test_errors_are_json() -> None:
    bodies = re.findall(r"return \d+ '(\{\"code\".*\})\\n'", (IMAGE / "nginx.conf").read_text())
    assert [json.loads(body)["code"] for body in bodies] == [401, 413, 503]

"""The configuration of nginx sends each key where the client library sends it."""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from dlrm_factory.client import Canary
from dlrm_factory.errors import ServingError
from dlrm_factory.tools.rollout import proxy_config
from dlrm_factory.tools.server.settings import free_ports

NGINX = shutil.which("nginx", path="/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin")
SHARE = 0.3
KEYS = ["", "a", "ab", "abc", "abcd", "abcde", "x" * 500, *(f"user_{i}" for i in range(200))]


class Backend(BaseHTTPRequestHandler):
    """Answers with the path that was asked for; what is in ``broken`` with its status."""

    protocol_version = "HTTP/1.1"
    broken: dict[str, int] = {}  # noqa: RUF012

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(self.broken.get(self.path, 200))
        said = self.path.encode() + b" " + body
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def backend() -> Iterator[ThreadingHTTPServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), type("Own", (Backend,), {"broken": {}})) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def config(**changes: object) -> str:
    return proxy_config(**{"version": "2.0", "share": SHARE, "key": "$http_x_user_id", **changes})


def test_the_text_splits_by_the_key_and_falls_back_to_the_default_version() -> None:
    text = config(listen="127.0.0.1:8000", server="10.0.0.1:8080")
    assert re.search(
        r'split_clients "\$http_x_user_id" \$dlrm_split \{\s+30%  "/predictions/dlrm/2\.0";\s+\*  "/predictions/dlrm";',
        text,
    )
    assert "server 10.0.0.1:8080;" in text
    assert "listen 127.0.0.1:8000;" in text
    assert "error_page 404 502 503 504 = @dlrm_default;" in text
    assert text.count("{") == text.count("}")
    assert config(share=0.0005).count("0.05%") == 2


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"share": 0.0}, "more than 0 %"),
        ({"share": 1.0}, "less than 100 %"),
        ({"key": "user"}, "names no variable of nginx"),
        ({"key": '$x"; }'}, "names no variable of nginx"),
        ({"server": "h; evil"}, "--server"),
        ({"listen": "1 2"}, "--listen"),
    ],
)
def test_what_nginx_would_misread_is_refused(changes: dict[str, object], said: str) -> None:
    with pytest.raises(ServingError, match=re.escape(said)):
        config(**changes)


def test_a_name_stays_within_its_quotes() -> None:
    text = config(model='a"; evil', version='2"\n')
    assert '"/predictions/a%22%3B%20evil/2%22%0A"' in text
    assert "\n# {" not in text


def test_each_key_goes_where_the_client_library_sends_it(
    tmp_path: Path, backend: ThreadingHTTPServer
) -> None:
    """Ask nginx itself where there is one; the text alone is read by the tests above."""
    (port,) = free_ports(1)
    text = config(listen=f"127.0.0.1:{port}", server=f"127.0.0.1:{backend.server_port}")
    canary = Canary(version="2.0", share=SHARE)
    expected = {key: f"/predictions/dlrm{'/2.0' if canary.version_for(key) else ''}" for key in KEYS}
    assert len(set(expected.values())) == 2
    if NGINX is None:
        return
    (tmp_path / "dlrm.conf").write_text(text)
    folders = "".join(
        f"{name}_temp_path {tmp_path}/{name};\n"
        for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (tmp_path / "nginx.conf").write_text(
        f"daemon off; master_process off; pid {tmp_path}/pid; error_log {tmp_path}/error.log;\n"
        f"events {{}}\nhttp {{ access_log off; {folders} include {tmp_path}/dlrm.conf; }}\n"
    )
    command = [NGINX, "-c", f"{tmp_path}/nginx.conf", "-p", str(tmp_path), "-e", f"{tmp_path}/error.log"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            transport = httpx.HTTPTransport(retries=5)
            with httpx.Client(
                base_url=f"http://127.0.0.1:{port}", transport=transport, trust_env=False
            ) as client:

                def ask(key: str) -> str:
                    response = client.post("/predictions/dlrm", content=b"{}", headers={"X-User-Id": key})
                    assert response.status_code == 200, (tmp_path / "error.log").read_text()
                    return response.text

                assert {key: ask(key) for key in KEYS} == {
                    key: f"{path} {{}}" for key, path in expected.items()
                }
                for status in (404, 503):
                    # The version is gone: its share asks the default one, with the same body.
                    backend.RequestHandlerClass.broken["/predictions/dlrm/2.0"] = status
                    assert {ask(key) for key in KEYS[:50]} == {"/predictions/dlrm {}"}
        finally:
            process.terminate()

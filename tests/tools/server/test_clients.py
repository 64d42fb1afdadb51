"""Management and prediction clients against a small HTTP server that answers as TorchServe does."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest

from dlrm_factory.errors import ServingError
from dlrm_factory.host.worker_file import WorkerFolder, worker_folder
from dlrm_factory.tools.client.tokens import BearerAuth, KeyFileAuth, is_loopback
from dlrm_factory.tools.server import LogMarks, RunDir, readiness
from dlrm_factory.tools.server.management import ManagementClient, error_text
from dlrm_factory.tools.server.predicting import find_endpoint, predict
from dlrm_factory.tools.server.scaling import Drain, scale_model


class Answers(BaseHTTPRequestHandler):
    """Serves one model; each look at it finds one worker more ready, up to what was asked."""

    wanted, ready, stuck, mute, pid, asked = 1, 1, False, False, 0, 0
    seen: list[tuple[str, str]] = []  # noqa: RUF012
    pids: tuple[int, ...] = ()
    at_put: Callable[[], None] | None = None
    races = 0

    def do_GET(self):
        cls = type(self)
        if "customized=true" in self.path:
            cls.asked += 1
            message = 'Model "dlrm" has no worker to serve describe request. Please use scale workers API'
            self.reply(503 if cls.mute else 200, {"code": 503, "message": message} if cls.mute else [{}])
        elif self.path.startswith("/models/dlrm"):
            cls.ready = min(cls.ready + (not cls.stuck), cls.wanted)
            workers = [
                {
                    "id": str(9000 + i),
                    "pid": cls.pids[i] if cls.pids else cls.pid,
                    "status": "READY" if i < cls.ready else "UNLOADING",
                }
                for i in range(cls.wanted)
            ]
            self.reply(200, [{"minWorkers": cls.wanted, "workers": workers}])
        elif self.path.startswith("/models/"):
            self.reply(404, {"code": 404, "type": "ModelNotFoundException", "message": "Model not found"})
        else:
            self.reply(200, {"models": [{"modelName": "dlrm", "modelUrl": "dlrm.mar"}]})

    def do_PUT(self):
        type(self).seen.append(("PUT", self.path))
        if len(self.seen) <= self.races:
            self.reply(500, {"code": 500, "type": "ConcurrentModificationException"})
            return
        if self.at_put:
            type(self).at_put()
        type(self).wanted = int(self.path.partition("min_worker=")[2].partition("&")[0])
        self.reply(202, {"status": "Processing worker updates..."})

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if body == b"slow":
            time.sleep(1)
        self.reply(
            200, {"path": self.path, "token": self.headers.get("Authorization"), "body": body.decode()}
        )

    def reply(self, status, content):
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        pass


@pytest.fixture
def answers():
    return type("Fresh", (Answers,), {"seen": []})


@pytest.fixture
def ended():
    """The pid of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.fixture
def url(answers):
    with ThreadingHTTPServer(("127.0.0.1", 0), answers) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_scaling_is_asynchronous_and_waits_for_exactly_n(url, answers):
    told = []
    with ManagementClient(url) as client:
        done = scale_model(client, "dlrm", 3, tell=told.append)
    assert (done.before, done.after) == (1, 3)
    assert answers.seen == [("PUT", "/models/dlrm?min_worker=3&max_worker=3&synchronous=false")]
    assert [progress.ready for progress in told] == [2, 3]


def test_workers_that_go_are_drained_first_and_released_at_the_end(url, answers, tmp_path):
    files = {pid: WorkerFolder(worker_folder("/models/abc", tmp_path), pid).own for pid in (101, 102, 103)}
    answers.wanted = answers.ready = 3
    answers.pids = (101, 102, 103)
    probes = []

    def probe():
        # A request comes to one worker after the other; those that are not drained answer theirs.
        probes.append([pid for pid, file in files.items() if file.drain])
        files[102 + len(probes) % 2].holding = True

    seen = []
    answers.at_put = staticmethod(
        lambda: seen.append([(file.drain, file.holding) for file in files.values()])
    )
    with ManagementClient(url) as client:
        done = scale_model(client, "dlrm", 1, drain=Drain(temporary=tmp_path, probe=probe))
    assert (done.before, done.after) == (3, 1)
    assert probes == [[102, 103]] * 2
    assert seen == [[(False, False), (True, True), (True, True)]]
    assert not any(file.drain for file in files.values())


def test_workers_that_never_hold_are_ended_all_the_same(url, answers, tmp_path, monkeypatch):
    monkeypatch.setattr("dlrm_factory.tools.server.scaling.MAX_DRAIN_S", 0.1)
    file = WorkerFolder(worker_folder("/models/abc", tmp_path), 102).own
    answers.wanted = answers.ready = 2
    answers.pids = (101, 102)
    for probe in (None, lambda: None):
        with Drain(temporary=tmp_path, probe=probe).workers([101, 102]) as holding:
            assert file.drain
            assert holding == 0
        assert not file.drain
    with ManagementClient(url) as client:
        assert scale_model(client, "dlrm", 1, drain=Drain(temporary=tmp_path)).after == 1


def test_races_within_torchserve_are_tried_again(url, answers):
    answers.races = 2
    with ManagementClient(url) as client:
        assert scale_model(client, "dlrm", 2).after == 2
    assert len(answers.seen) == 3


def test_scaling_to_none(url):
    with ManagementClient(url) as client:
        assert scale_model(client, "dlrm", 0).after == 0
        assert client.workers("dlrm") == []
        with pytest.raises(ServingError, match="0 or more"):
            scale_model(client, "dlrm", -1)


def test_a_time_out_says_how_far_it_came_and_how_to_go_back(url, answers):
    answers.stuck = True
    with (
        ManagementClient(url) as client,
        pytest.raises(ServingError, match=r'(?s)"dlrm" has 1 of 2 workers ready.*--timeout.*dlrm scale 1'),
    ):
        scale_model(client, "dlrm", 2, timeout=0.1)


def test_an_unknown_model_names_what_is_served(url):
    with (
        ManagementClient(url) as client,
        pytest.raises(ServingError, match=r'no model "dlmr"; did you mean "dlrm"'),
    ):
        client.workers("dlmr")


def test_nobody_there():
    with ManagementClient("http://127.0.0.1:9") as client:
        assert not client.answers()
        with pytest.raises(ServingError, match=r"no server answers at http://127\.0\.0\.1:9"):
            client.models()


def test_predictions_go_as_they_are(url, tmp_path):
    endpoint = find_endpoint("inference", run_dir=tmp_path, url=url + "/", token="secret")
    found = predict(endpoint, "my model", b'{"a": 1.50}').json()
    assert found == {"path": "/predictions/my%20model", "token": "Bearer secret", "body": '{"a": 1.50}'}
    with pytest.raises(ServingError, match=r"no answer from .* in 0.2 s"):
        predict(endpoint, "dlrm", b"slow", timeout=0.2)


def test_no_server_and_no_url(tmp_path):
    with pytest.raises(ServingError, match=r"no server runs in .*dlrm serve"):
        find_endpoint("inference", run_dir=tmp_path, url=None, token=None)
    for url in ("127.0.0.1:8080", "ftp://x", "http://", "http://x:port"):
        with pytest.raises(ServingError, match="--url"):
            find_endpoint("inference", run_dir=tmp_path, url=url, token=None)


def test_tokens_on_file_go_to_this_machine_only(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "key_file.json").write_text("{}")
    here = find_endpoint("inference", run_dir=tmp_path, url="http://localhost:8080", token=None)
    away = find_endpoint("inference", run_dir=tmp_path, url="http://192.0.2.1:8080", token=None)
    given = find_endpoint("inference", run_dir=tmp_path, url="http://192.0.2.1:8080", token="t")
    assert isinstance(here.auth, KeyFileAuth)
    assert away.auth is None
    assert isinstance(given.auth, BearerAuth)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://127.0.0.1:1", True),
        ("http://localhost:1", True),
        ("http://[::1]:1", True),
        ("http://x:1", False),
    ],
)
def test_loopback(url, expected):
    assert is_loopback(url) == expected


def test_errors_are_one_line_with_the_path():
    body = {
        "code": 400,
        "type": "RequestError",
        "message": "id 7 is out of range",
        "path": "$.instances[3].user",
    }
    found = error_text(httpx.Response(400, json=body))
    assert found == "HTTP 400 RequestError at $.instances[3].user: id 7 is out of range"
    assert error_text(httpx.Response(502, text="<html>")) == "HTTP 502: <html>"
    assert "dlrm scale" in error_text(httpx.Response(503, json={"type": "x", "message": "no worker"}))


def test_a_ready_model_is_asked(url, answers):
    with ManagementClient(url) as client:
        scale_model(client, "dlrm", 2, timeout=10)
        scale_model(client, "dlrm", 0, timeout=10)
    assert answers.asked == 1  # but not where there is nobody to answer


def test_a_ready_model_that_does_not_answer(url, answers):
    answers.mute = True
    with (
        ManagementClient(url) as client,
        pytest.raises(
            ServingError, match=r"calls its workers ready, but none has answered within 1 s"
        ) as caught,
    ):
        scale_model(client, "dlrm", 1, timeout=1)
    assert "goes on trying" not in str(caught.value)


def test_a_ready_worker_whose_process_has_ended(url, answers, ended, tmp_path, monkeypatch):
    monkeypatch.setattr(readiness, "_MAX_ENDED_S", 0.3)
    answers.pid = ended
    marks = LogMarks.now(RunDir.at(tmp_path))
    said = rf"calls worker 9000 ready, but its process \(pid {ended}\) has ended\. Start the server again"
    with ManagementClient(url) as client, pytest.raises(ServingError, match=said):
        scale_model(client, "dlrm", 1, marks=marks, timeout=10)

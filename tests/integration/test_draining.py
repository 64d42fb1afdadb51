"""A server that is stopped answers what it has taken; whoever comes later gets an error that may be tried again."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest
from support.clients import Clients
from support.server import serving

from dlrm_factory.tools.server import RunDir, RunningServer, health_of, stop_server
from dlrm_factory.tools.server.processes import server_processes

pytestmark = pytest.mark.integration

# Answers after as many seconds as the body says, one request after the other.
PATIENT = """
import time
from handler.draining import Draining
from dlrm_factory.requests.answers import answer_json

class Patient:
    model_name, model_version, max_body_bytes = "patient", "1.0", 100
    def initialize(self, context):
        self.draining = Draining.for_model(context.system_properties["model_dir"])
        self.score = lambda body: (time.sleep(float(body)), answer_json({"score": float(body)}))[1]
    def handle(self, data, context):
        self.draining.hold()
        bodies = [bytes(row["body"]) for row in data]
        service = self.draining.service(self)
        answers = [self.score(body) for body in bodies] if service is self else service.handle(bodies)
        self.draining.begin_answers(context.request_ids)
        for i, answer in enumerate(answers): context.set_response_status(answer.status, "x", i)
        return [answer.body for answer in answers]
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("patient")
    (folder / "patient_handler.py").write_text(PATIENT)
    (folder / "model-config.yaml").write_text("minWorkers: 1\nmaxWorkers: 1\nbatchSize: 1\n")
    arguments = ["--model-name", "patient", "--version", "1.0", "--handler", "patient_handler.py"]
    arguments += ["--config-file", "model-config.yaml", "--export-path", str(folder)]
    archiver = "from model_archiver.model_packaging import generate_model_archive as run; run()"
    subprocess.run([sys.executable, "-c", archiver, *arguments], check=True, cwd=folder, timeout=60)
    return folder


def kinds(clients: Clients) -> set[tuple[int, str]]:
    """Statuses of all answers; of errors the message too."""
    found = {(status, json.loads(body).get("message", "")) for _, status, body in clients.answers}
    return {(status, message[:30].strip()) for status, message in found}


def test_sigterm_first_says_not_ready_then_drains_then_ends(store: Path, tmp_path: Path) -> None:
    run_dir = RunDir.at(tmp_path / "run")
    arguments = ["serve", "--foreground", "--json", "--model-store", str(store), "--models", "patient.mar"]
    arguments += ["--run-dir", str(run_dir.root), "--ready-port", "0", "--drain-delay", "4"]
    arguments += [word for name in ("port", "management-port", "metrics-port") for word in (f"--{name}", "0")]
    command = [sys.executable, "-c", "from dlrm_factory.cli import main; main()", *arguments]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        printed = ""
        while not printed.endswith("}\n"):
            line = process.stdout.readline()
            assert line, "it ended before it was ready"
            printed += line
        url = json.loads(printed)["ready"]
        assert httpx.get(f"{url}/ready", trust_env=False).json()["ready"]
        state = run_dir.read_state()
        assert state is not None
        server = RunningServer(run_dir=run_dir, state=state, workers={"patient": 1})
        with Clients(server, "patient", [b"0.005"] * 8) as clients:
            time.sleep(0.5)
            process.send_signal(signal.SIGTERM)
            end = time.monotonic() + 30
            while (ready := httpx.get(f"{url}/ready", trust_env=False)).status_code == 200:
                assert time.monotonic() < end
                time.sleep(0.05)
            # A load balancer does not know yet, and is answered.
            assert kinds(clients) == {(200, "")}
            assert (ready.status_code, ready.json()["ready"]) == (503, False)
            assert "drains" in ready.json()["reason"]
            assert httpx.get(f"{url}/live", trust_env=False).status_code == 200
            assert process.wait(timeout=60) == 0
            # Clients stop by themselves when nobody listens.
            clients.wait()
    assert clients.lost == []
    assert clients.scored > 50
    assert kinds(clients) <= {(200, ""), (503, 'Model "patient" has no worker')}
    assert server_processes(run_dir) == []


def test_after_the_bound_what_waits_is_turned_away(store: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    # The first batch takes a second, and so longer than the bound; the others wait behind it.
    with (
        serving(store, "patient.mar", run_dir=run_dir) as server,
        Clients(server, "patient", [b"1.0"] * 4, pause_s=30) as clients,
    ):
        time.sleep(0.4)
        stop = threading.Thread(target=stop_server, args=(run_dir,), kwargs={"drain_seconds": 0.2})
        stop.start()
        time.sleep(0.2)
        assert "drains" in health_of(run_dir).reason
        stop.join()
    assert clients.lost == []
    assert kinds(clients) == {(200, ""), (503, "the server, or this version of")}
    assert clients.scored == 1


def test_a_server_scales_itself_and_shows_all_metrics_at_one_address(store: Path, tmp_path: Path) -> None:
    run_dir = RunDir.at(tmp_path / "run")
    arguments = ["serve", "--json", "--model-store", str(store), "--models", "patient.mar"]
    arguments += ["--run-dir", str(run_dir.root), "--ready-port", "0"]
    # The archive asks for one worker, and the queue is empty: only the bound adds one.
    arguments += ["--autoscale", "2:3", "--queue-ms", "1000"]
    arguments += [word for name in ("port", "management-port", "metrics-port") for word in (f"--{name}", "0")]
    command = [sys.executable, "-c", "from dlrm_factory.cli import main; main()", *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    try:
        assert done.returncode == 0, done.stderr
        told = json.loads(done.stdout)
        assert (told["autoscale"]["min_workers"], told["autoscale"]["max_workers"]) == (2, 3)
        state = run_dir.read_state()
        assert state is not None
        server = RunningServer(run_dir=run_dir, state=state, workers={"patient": 1})
        with Clients(server, "patient", [b"0.005"]) as clients:
            end = time.monotonic() + 60
            added = 'dlrm_autoscale_changes_total{model="patient",direction="up"} 1'
            while added not in (text := httpx.get(f"{told['ready']}/metrics", trust_env=False).text):
                assert time.monotonic() < end, text
                time.sleep(0.2)
        assert clients.lost == []
        assert {status for _, status, _ in clients.answers} == {200}
        lines = text.splitlines()
        assert 'dlrm_autoscale_workers{model="patient"} 2' in lines
        assert {"dlrm_server_ready 1", 'dlrm_metrics_up{source="models"} 1'} <= set(lines)
        assert any(line.startswith("ts_inference_requests_total{") for line in lines)
    finally:
        stop_server(run_dir.root, drain_seconds=0)
    # What scales has ended with the server, and the next server is another matter.
    assert server_processes(run_dir) == []
    assert not run_dir.autoscale_file.exists()

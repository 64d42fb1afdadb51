"""Scaling down under load: every request gets its own answer or a retryable error, within seconds."""

from __future__ import annotations

import collections
import http.client
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import pytest
from support.batches import random_state
from support.depth import examples
from support.server import serving

from dlrm_factory.config import ServingOptions, tiny
from dlrm_factory.tools.archive.sealing import archive_model
from dlrm_factory.tools.server import (
    Drain,
    RunningServer,
    find_endpoint,
    management_client,
    probe_of,
    scale_model,
)
from dlrm_factory.weights.checkpoint import save_checkpoint

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]
CLIENTS = 20
ROUNDS = examples(2)
PAUSE_S = 0.01  # or new workers would have no core to start on
TIMEOUT_S = 15.0
# What a raw client must take for "send it again": docs/serving.md lists them.
RETRYABLE = {
    "Worker died.",
    "Worker scaled down.",
    "the worker that had this request was scaled away; send it again",
}
# Answers each request with its own body, at a moment near the one in which the worker is ended.
ECHO = """
import os, pathlib, random, time
from handler.draining import Draining
from dlrm_factory.requests.answers import Answer, answer_scaled_away

class Echo:
    def initialize(self, context):
        self.draining = Draining.for_model(context.system_properties["model_dir"])
    def handle(self, data, context):
        self.draining.hold()
        signal = pathlib.Path(__SIGNAL__)
        end = time.monotonic() + 0.02
        while not signal.exists() and time.monotonic() < end: time.sleep(0.0002)
        time.sleep(random.random() * 0.008)
        # Large ones: TorchServe is busy with them for milliseconds, in which the worker can be ended.
        answers = [Answer(status=200, body=bytes(row["body"]) * 100) for row in data]
        for i in self.draining.begin_answers(context.request_ids): answers[i] = answer_scaled_away()
        for i, answer in enumerate(answers):
            context.set_response_status(answer.status, "x", i)
            context.set_response_content_type(i, answer.content_type)
        return [answer.body for answer in answers]
"""


class Load:
    """Clients on keep-alive connections, each with a body of its own, until they are stopped."""

    def __init__(self, server: RunningServer, model: str, bodies: list[bytes]) -> None:
        endpoint = find_endpoint("inference", run_dir=server.run_dir.root, url=None, token=None)
        token = json.loads(server.run_dir.key_file.read_text())["inference"]["key"]
        self._address = urlsplit(endpoint.url).netloc
        self._path = f"/predictions/{model}"
        self._headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        self._bodies = bodies
        self._stopped = threading.Event()
        self.answers: list[collections.Counter[tuple[int, bytes]]] = [collections.Counter() for _ in bodies]
        self.slowest = 0.0
        self.silent: list[BaseException] = []

    def __enter__(self) -> Load:
        self._threads = [threading.Thread(target=self._run, args=(i,)) for i in range(len(self._bodies))]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join()

    def _run(self, client: int) -> None:
        connection = http.client.HTTPConnection(self._address, timeout=TIMEOUT_S)
        while not self._stopped.is_set():
            start = time.monotonic()
            try:
                connection.request("POST", self._path, self._bodies[client], self._headers)
                response = connection.getresponse()
                self.answers[client][response.status, response.read()] += 1
            except TimeoutError as error:
                self.silent.append(error)
                connection.close()
            except (ConnectionError, http.client.BadStatusLine):
                # A connection that an earlier error has closed.
                connection.close()
            self.slowest = max(self.slowest, time.monotonic() - start)
            self._stopped.wait(PAUSE_S)
        connection.close()

    def check(self, right: Callable[[int, bytes], bool], *, all_answered: bool = True) -> int:
        """Assert that each answer is its request's own or a retryable error; return how many of the former."""
        count = 0
        if all_answered:
            assert self.silent == []
            assert self.slowest < TIMEOUT_S
        for client, answers in enumerate(self.answers):
            for (status, body), times in answers.items():
                if status == 200:
                    assert right(client, body), f"client {client} got {body[:200]!r}, {times} times"
                    count += times
                else:
                    assert status in (500, 503, 507)
                    assert json.loads(body)["message"] in RETRYABLE
        return count


@pytest.fixture(scope="module")
def signal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """File that exists while a worker of "echo" is about to be ended."""
    return tmp_path_factory.mktemp("signal") / "flag"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, signal: Path) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("scaling")
    declaration = msgspec.structs.replace(tiny(), serving=ServingOptions(compile="off", max_workers=3))
    save_checkpoint(folder / "tiny.safetensors", declaration, random_state(declaration))
    archive_model(
        folder / "tiny.safetensors", folder / "store" / "dlrm", model_name="dlrm", archive_format="directory"
    )
    handler = folder / "echo_handler.py"
    handler.write_text(ECHO.replace("__SIGNAL__", repr(str(signal))))
    config = folder / "model-config.yaml"
    config.write_text("minWorkers: 1\nmaxWorkers: 3\nbatchSize: 64\nmaxBatchDelay: 1\n")
    arguments = ["--model-name", "echo", "--version", "1.0", "--handler", str(handler)]
    arguments += ["--config-file", str(config), "--export-path", str(folder / "store")]
    archiver = "from model_archiver.model_packaging import generate_model_archive as run; run()"
    subprocess.run([sys.executable, "-c", archiver, *arguments], check=True, cwd=folder, timeout=60)
    with serving(folder / "store", "dlrm=dlrm", "echo=echo.mar", run_dir=folder / "run") as server:
        yield server


def drain_of(server: RunningServer, model: str) -> Drain:
    endpoint = find_endpoint("inference", run_dir=server.run_dir.root, url=None, token=None)
    return Drain(temporary=Path(server.state.tmp), probe=probe_of(endpoint, model))


def rows(client: int) -> bytes:
    instances = [
        {"user_id": f"u{client}-{row}", "price": client * 3.0 + row} for row in range(1 + client % 3)
    ]
    return json.dumps({"instances": instances}).encode()


def test_scores_are_ones_own_while_workers_are_drained(server: RunningServer) -> None:
    bodies = [rows(client) for client in range(CLIENTS)]
    with management_client(server.run_dir, server.state) as management:
        with Load(server, "dlrm", bodies) as alone:
            time.sleep(1.0)
        expected = [
            json.loads(body)["predictions"] for ((_, body),) in (answers.keys() for answers in first(alone))
        ]
        with Load(server, "dlrm", bodies) as load:
            for workers in (3, 2, 1):
                scale_model(management, "dlrm", workers, timeout=120, drain=drain_of(server, "dlrm"))

    def right(client: int, body: bytes) -> bool:
        return json.loads(body)["predictions"] == pytest.approx(expected[client], abs=1e-5)

    assert load.check(right) > CLIENTS * 5


def first(load: Load) -> list[dict[tuple[int, bytes], int]]:
    """The first answer of each client."""
    return [dict([next(iter(answers.items()))]) for answers in load.answers]


def test_idle_workers_are_drained_too(server: RunningServer) -> None:
    with management_client(server.run_dir, server.state) as management:
        scale_model(management, "dlrm", 2, timeout=120)
        going = [worker.pid for worker in management.workers("dlrm")[1:]]
        drain = drain_of(server, "dlrm")
        with drain.workers(going) as holding:
            assert holding == 1
        scale_model(management, "dlrm", 1, timeout=120, drain=drain)
        # The probes are answered by the worker that is left.
        assert [worker.ready for worker in management.workers("dlrm")] == [True]


def test_answers_in_the_moment_of_the_end_reach_their_own_clients(
    server: RunningServer, signal: Path
) -> None:
    bodies = [b'"%d-%s"' % (client, b"x" * 2000) for client in range(64)]
    with management_client(server.run_dir, server.state) as management, Load(server, "echo", bodies) as load:
        for _ in range(ROUNDS):
            scale_model(management, "echo", 3, timeout=120)
            time.sleep(0.3)
            signal.touch()
            # By TorchServe's own call alone: no worker is told. TorchServe may drop requests that it has just
            # taken from its queue for a worker that it ends; what it answers must be right all the same.
            scale_model(management, "echo", 1, timeout=120)
            signal.unlink()
    assert load.check(lambda client, body: body == bodies[client] * 100, all_answered=False) > 300

"""A worker that is a group of ranks: its scores, a rank's end under load, and the front end's."""

from __future__ import annotations

import collections
import json
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from support.batches import random_state, uncompiled
from support.handed import handle
from support.server import ask, serving

from dlrm_factory.config import tiny
from dlrm_factory.requests.service import DLRMService
from dlrm_factory.scorer import Scorer
from dlrm_factory.tools.archive.sealing import archive_model
from dlrm_factory.tools.server import RunningServer, management_client
from dlrm_factory.tools.server.processes import server_processes
from dlrm_factory.weights.checkpoint import save_checkpoint

pytestmark = pytest.mark.integration

RANKS = 2
REQUEST = {
    "instances": [{"price": 9.5, "user_id": "u17", "item_tags": [3, 9]}, {"age_days": 3}, {"item_id": 12}]
}
# TorchServe tries again after a second; the rest is Python's imports, which a busy machine makes long.
BACK_S = 90.0


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One archive, which declares one rank, as a folder."""
    folder = tmp_path_factory.mktemp("groups")
    declaration = uncompiled(tiny())
    save_checkpoint(folder / "tiny.safetensors", declaration, random_state(declaration))
    archive_model(folder / "tiny.safetensors", folder / "store" / "dlrm", archive_format="directory")
    return folder / "store"


@pytest.fixture(scope="module")
def server(store: Path) -> Iterator[RunningServer]:
    with serving(store, "dlrm=dlrm", run_dir=store.parent / "run", ranks=RANKS) as running:
        yield running


def ranks_of(server: RunningServer) -> dict[int, psutil.Process]:
    """The processes of the group by their ranks."""
    found = {}
    for process in server_processes(server.run_dir):
        try:
            if "model_service_worker.py" in " ".join(process.cmdline()):
                found[int(process.environ()["RANK"])] = process
        except (psutil.Error, KeyError):
            continue
    return found


class Load:
    """Clients that ask again and again, by connections that TorchServe may close."""

    def __init__(self, client: httpx.Client, clients: int = 4) -> None:
        self.answers: collections.Counter[tuple[int, str]] = collections.Counter()
        self._client = client
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(clients)]

    def _ask(self) -> None:
        while not self._stopped.is_set():
            answer = self._client.post("/predictions/dlrm", json=REQUEST)
            self.answers[answer.status_code, answer.text] += 1

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join()


def wait(seconds: float, condition) -> bool:
    end = time.monotonic() + seconds
    while not (met := condition()) and time.monotonic() < end:
        time.sleep(0.05)
    return bool(met)


def test_a_group_serves_and_ends_as_a_whole(server: RunningServer, client: httpx.Client, store: Path) -> None:
    alone = handle(DLRMService(Scorer.load(store / "dlrm")), [{"body": json.dumps(REQUEST).encode()}], [{}])
    expected = json.loads(alone[0].body)["predictions"]
    right = ask(client, "dlrm", REQUEST)
    assert right["predictions"] == pytest.approx(expected, abs=1e-5)
    with management_client(server.run_dir, server.state) as management:
        first = ranks_of(server)
        assert first.keys() == {0, 1}
        assert [worker.pid for worker in management.workers("dlrm")] == [first[0].pid]
        described = management._call("GET", "/models/dlrm", params={"customized": "true"})
    plan = described[0]["customizedMetadata"]["plan"]
    assert (plan["world_size"], len(plan["ranks"])) == (RANKS, RANKS)

    # A follower ends: its batch gets 503, and nothing else fails.
    with Load(client) as load:
        assert wait(30, lambda: load.answers.total() > 20)
        first[1].send_signal(signal.SIGKILL)
        assert wait(BACK_S, lambda: {status for status, _ in load.answers} > {200})
        before = load.answers.total()
        # One after the other may still be in TorchServe's hands.
        assert wait(BACK_S, lambda: load.answers.total() > before + 20)
    failed = {status: json.loads(text) for status, text in load.answers if status != 200}
    assert failed.keys() == {503}
    assert failed[503]["type"] == "GroupLost"
    assert {text for status, text in load.answers if status == 200} == {
        json.dumps(right, separators=(",", ":"))
    }
    assert not any(rank.is_running() and rank.status() != psutil.STATUS_ZOMBIE for rank in first.values())

    # The front end ends, and no rank outlives it.
    second = ranks_of(server)
    assert second.keys() == {0, 1}
    psutil.Process(server.state.pid).kill()
    assert wait(10, lambda: not server_processes(server.run_dir))

"""A worker that is a group of ranks, on one host and on two: its scores, a rank's end under load, the front end's."""

from __future__ import annotations

import collections
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import psutil
import pytest
from support.batches import random_state, uncompiled
from support.handed import handle
from support.hosts import listens_everywhere
from support.server import ask, serving

from dlrm_factory.config import tiny
from dlrm_factory.config.options import ShardingOptions
from dlrm_factory.rendezvous import write_secret
from dlrm_factory.requests.service import DLRMService
from dlrm_factory.scorer import Scorer
from dlrm_factory.tools.archive.sealing import archive_model
from dlrm_factory.tools.server import RunningServer, management_client
from dlrm_factory.tools.server.processes import server_processes
from dlrm_factory.tools.server.ranks import with_other_ranks
from dlrm_factory.tools.server.settings import free_ports
from dlrm_factory.tools.server.store import find_models
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
    # Copies of small tables would do without the others.
    sharding = ShardingOptions(replicate_below=0)
    declaration = msgspec.structs.replace(uncompiled(tiny()), sharding=sharding)
    save_checkpoint(folder / "tiny.safetensors", declaration, random_state(declaration))
    archive_model(folder / "tiny.safetensors", folder / "store" / "dlrm", archive_format="directory")
    return folder / "store"


@pytest.fixture(scope="module")
def joiner(store: Path) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """The second host of model "spread", and the options of a server that leads it."""
    secret = store.parent / "secret"
    write_secret(secret)
    (port,) = free_ports(1)
    lead = {"group_address": "127.0.0.1", "group_ports": str(port), "secret_file": secret}
    command = [
        str(Path(sys.executable).with_name("dlrm")),
        "join",
        "--leader",
        "127.0.0.1",
        "--ports",
        str(port),
    ]
    command += ["--store", str(store), "--models", "spread=dlrm", "--secret-file", str(secret)]
    with subprocess.Popen([*command, "--address", "127.0.0.2"], stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process, lead
        finally:
            process.kill()


@pytest.fixture(scope="module")
def server(store: Path, joiner: tuple[subprocess.Popen[str], dict[str, Any]]) -> Iterator[RunningServer]:
    """Model "dlrm" by two ranks of this host, and "spread", the same, by one on each of two hosts."""
    here, spread = find_models(store, ["dlrm=dlrm", "spread=dlrm"])
    (here,) = with_other_ranks([here], RANKS, store.parent / "staged")
    (spread,) = with_other_ranks([spread], RANKS, store.parent / "staged", hosts=2)
    with serving(store, here.spec, spread.spec, run_dir=store.parent / "run", **joiner[1]) as running:
        yield running


def ranks_of(server: RunningServer) -> dict[int, psutil.Process]:
    """The processes of the group by their ranks."""
    found = {}
    for process in server_processes(server.run_dir):
        try:
            if "model_service_worker.py" in " ".join(process.cmdline()):
                # A worker that is alone on its host has no rank.
                found[int(process.environ()["RANK"])] = process
        except (psutil.Error, KeyError):
            continue
    return found


def guards_of(server: RunningServer, leader: psutil.Process) -> list[psutil.Process]:
    """The process that answers when ``leader`` is killed."""
    return [
        process
        for process in server_processes(server.run_dir)
        if process.ppid() == leader.pid and "guard_process.py" in " ".join(process.cmdline())
    ]


class Load:
    """Clients that ask again and again, by connections that TorchServe may close."""

    def __init__(self, client: httpx.Client, model: str = "dlrm", clients: int = 4) -> None:
        self.answers: collections.Counter[tuple[int, str]] = collections.Counter()
        self._client, self._path = client, f"/predictions/{model}"
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(clients)]

    def _ask(self) -> None:
        while not self._stopped.is_set():
            answer = self._client.post(self._path, json=REQUEST)
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


def predictions_alone(store: Path) -> list[float]:
    """Answer of one process."""
    alone = handle(DLRMService(Scorer.load(store / "dlrm")), [{"body": json.dumps(REQUEST).encode()}], [{}])
    return json.loads(alone[0].body)["predictions"]


def described(server: RunningServer, model: str) -> dict[str, Any]:
    with management_client(server.run_dir, server.state) as management:
        found = management._call("GET", f"/models/{model}", params={"customized": "true"})
    return found[0]["customizedMetadata"]


def test_a_group_over_two_hosts(
    server: RunningServer,
    client: httpx.Client,
    store: Path,
    joiner: tuple[subprocess.Popen[str], dict[str, Any]],
) -> None:
    right = ask(client, "spread", REQUEST)
    assert right["predictions"] == pytest.approx(predictions_alone(store), abs=1e-5)
    found = described(server, "spread")
    assert [rank["host"] for rank in found["plan"]["ranks"]] == [0, 1]
    assert found["waiting_groups"] == []
    # Neither TorchServe nor torchrun nor a rank.
    listening = {each.pid: listens_everywhere(each.pid) for each in server_processes(server.run_dir)}
    assert len(listening) > RANKS + 2
    assert not any(listening.values())

    (rank,) = psutil.Process(joiner[0].pid).children()
    with Load(client, "spread") as load:
        assert wait(30, lambda: load.answers.total() > 20)
        rank.send_signal(signal.SIGKILL)
        assert wait(BACK_S, lambda: {status for status, _ in load.answers} > {200})
        before = load.answers.total()
        assert wait(BACK_S, lambda: load.answers.total() > before + 20)
    failed = {status: json.loads(text)["type"] for status, text in load.answers if status != 200}
    assert failed == {503: "GroupLost"}
    assert {json.loads(text)["predictions"][0] for status, text in load.answers if status == 200} == {
        right["predictions"][0]
    }

    joiner[0].terminate()
    told, _ = joiner[0].communicate(timeout=30)
    assert joiner[0].returncode == 0
    # A leader that is about to end may still be there when it is asked again.
    lines = [line for line in told.splitlines() if not line.startswith(("refused", "no leader"))]
    assert [line.split(" at ")[0] for line in lines] == [
        "waiting for a leader",
        "admitted",
        "joined with rank 1",
        "the group",
        "admitted",
        "joined with rank 1",
        "left 127.0.0.1:" + joiner[1]["group_ports"] + " as host 1 of 2",
    ]
    missing = "Waiting for host 1 (before at 127.0.0.2) of 2, which `dlrm join` brings, at 127.0.0.1:"
    assert wait(BACK_S, lambda: missing in server.run_dir.model_log.read_text())


def test_a_group_serves_and_ends_as_a_whole(server: RunningServer, client: httpx.Client, store: Path) -> None:
    right = ask(client, "dlrm", REQUEST)
    assert right["predictions"] == pytest.approx(predictions_alone(store), abs=1e-5)
    with management_client(server.run_dir, server.state) as management:
        first = ranks_of(server)
        assert first.keys() == {0, 1}
        assert [worker.pid for worker in management.workers("dlrm")] == [first[0].pid]
    plan = described(server, "dlrm")["plan"]
    assert (plan["world_size"], len(plan["ranks"])) == (RANKS, RANKS)

    # A follower ends, and then the leader: its batch gets 503, and nothing else fails.
    for rank in (1, 0):
        ranks = ranks_of(server)
        (guard,) = guards_of(server, ranks[0])
        with Load(client) as load:
            assert wait(30, lambda load=load: load.answers.total() > 20)
            ranks[rank].send_signal(signal.SIGKILL)
            assert wait(BACK_S, lambda load=load: {status for status, _ in load.answers} > {200})
            before = load.answers.total()
            # One after the other may still be in TorchServe's hands.
            assert wait(BACK_S, lambda load=load, before=before: load.answers.total() > before + 20)
        failed = {status: json.loads(text) for status, text in load.answers if status != 200}
        assert failed.keys() == {503}
        assert failed[503]["type"] == "GroupLost"
        assert {text for status, text in load.answers if status == 200} == {
            json.dumps(right, separators=(",", ":"))
        }
        left = [*ranks.values(), guard]
        assert not any(each.is_running() and each.status() != psutil.STATUS_ZOMBIE for each in left)

    # The front end ends, and no rank outlives it.
    last = ranks_of(server)
    assert last.keys() == {0, 1}
    psutil.Process(server.state.pid).kill()
    assert wait(10, lambda: not server_processes(server.run_dir))

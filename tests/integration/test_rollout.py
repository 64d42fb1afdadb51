"""Rollouts on a real TorchServe under load: nothing is lost, and no version answers that was not asked for."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import psutil
import pytest
from support.batches import random_state
from support.clients import Clients
from support.commands import WITHOUT_TORCH
from support.depth import examples
from support.server import ask, inference_client, serving

from dlrm_factory.client import DLRMClient
from dlrm_factory.config import ServingOptions, tiny
from dlrm_factory.errors import ServingError
from dlrm_factory.tools.archive.sealing import archive_model
from dlrm_factory.tools.rollout import RolloutBounds, RolloutOptions, read_history, roll_back, roll_out
from dlrm_factory.tools.rollout.state import RolloutFile
from dlrm_factory.tools.server import RunningServer, management_client
from dlrm_factory.tools.server.processes import server_processes
from dlrm_factory.weights.checkpoint import save_checkpoint

pytestmark = pytest.mark.integration

ROUNDS = examples(1)
CLIENTS = 6
# Both have random weights, so that every score says which version gave it.
ANY_SCORES = RolloutBounds(max_psi=1000.0, max_p99_ratio=1000.0)
REQUEST = {"instances": [{"user_id": "u17", "price": 9.5}]}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("rollout")
    declaration = msgspec.structs.replace(tiny(), serving=ServingOptions(compile="off", max_workers=3))
    for version in (1, 2):
        checkpoint = folder / f"{version}.safetensors"
        save_checkpoint(checkpoint, declaration, random_state(declaration, seed=version))
        archive_model(
            checkpoint, folder / "store" / f"v{version}.mar", model_name="dlrm", version=f"{version}.0"
        )
    with serving(folder / "store", "dlrm=v1.mar", run_dir=folder / "run") as running:
        yield running


@pytest.fixture(scope="module")
def score(server: RunningServer) -> float:
    """Score of `REQUEST` by version 1.0, which is the default one between the tests."""
    with inference_client(server) as client:
        return float(ask(client, "dlrm", REQUEST)["predictions"][0])


def options(server: RunningServer, version: str, **others: object) -> RolloutOptions:
    usual = {"watch_s": 1.0, "keep_s": 600.0, "bounds": ANY_SCORES}
    archive = Path(server.state.model_store) / f"v{version[0]}.mar"
    return RolloutOptions(archive=archive, run_dir=server.run_dir.root, **{**usual, **others})


def default_of(server: RunningServer) -> str:
    with management_client(server.run_dir, server.state) as client:
        return client.describe("dlrm").version


def worker_errors(server: RunningServer) -> int:
    return server.run_dir.ts_log.read_text(encoding="utf-8").count("Backend worker error")


def is_worker(process: psutil.Process) -> bool:
    try:
        return any(word.endswith("model_service_worker.py") for word in process.cmdline())
    except psutil.Error:
        return False


def wait_until_removed(server: RunningServer) -> None:
    end = time.monotonic() + 120
    with management_client(server.run_dir, server.state) as client:
        while len(client.versions("dlrm")) > 1:
            assert time.monotonic() < end, "a version was not removed"
            time.sleep(0.1)


def answered(clients: Clients) -> dict[float, int]:
    """Scores, and how often each came."""
    found: dict[float, int] = {}
    for (_, status, body), times in clients.answers.items():
        if status == 200:
            score = json.loads(body)["predictions"][0]
            found[score] = found.get(score, 0) + times
    return found


def test_a_shadow_then_the_switch_then_back(server: RunningServer, score: float) -> None:
    with Clients(server, "dlrm", [json.dumps(REQUEST).encode()] * CLIENTS) as clients:
        done = roll_out(options(server, "2.0", shadow=True, shadow_requests=60, shadow_s=300.0))
        assert default_of(server) == "2.0"
        time.sleep(0.3)
        roll_back("dlrm", server.run_dir.root)
        assert default_of(server) == "1.0"
        wait_until_removed(server)
    assert clients.lost == []
    assert {status for _, status, _ in clients.answers} == {200}
    shadow = done.steps["shadow"]
    assert shadow["old"]["requests"] == shadow["new"]["requests"] == 60
    both = [shadow["old"]["mean_score"], shadow["new"]["mean_score"]]
    assert both[0] == pytest.approx(score, abs=1e-4)
    assert abs(both[0] - both[1]) > 0.01
    assert sorted(answered(clients)) == pytest.approx(sorted(both), abs=1e-4)
    assert done.steps["watch"]["old"]["requests"] > 0
    assert done.steps["watch"]["new"]["requests"] > 0


@pytest.mark.parametrize(
    "command", ["ready", "status --interval 0.6", "scale 1", "metrics", "rollback", "autoscale --off"]
)
def test_light_commands_do_their_work_without_torch(server: RunningServer, command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, *command.split(), "--run-dir", str(server.run_dir.root)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    # Nothing is kept to go back to, which the server was asked.
    assert done.returncode == (1 if command == "rollback" else 0), done.stderr
    assert "none is kept" in done.stderr or command != "rollback"


def test_a_worse_version_is_taken_back_while_clients_go_on(server: RunningServer, score: float) -> None:
    strict = RolloutBounds(max_psi=0.25, max_p99_ratio=1000.0)
    with Clients(server, "dlrm", [json.dumps(REQUEST).encode()] * CLIENTS, pause_s=0.001) as clients:
        with pytest.raises(ServingError, match=r"(?s)scores have shifted: PSI .*dlrm 1\.0 answers as before"):
            roll_out(options(server, "2.0", shadow=True, shadow_requests=600, shadow_s=300.0, bounds=strict))
        assert default_of(server) == "1.0"
    assert clients.lost == []
    # No client was asked by the new version: the shadow asks it alone.
    assert list(answered(clients)) == pytest.approx([score], abs=1e-6)
    assert read_history(server.run_dir.root)[-1]["outcome"] == "aborted"


def test_an_archive_that_does_not_load_changes_nothing(server: RunningServer, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.unpack_archive(Path(server.state.model_store) / "v2.mar", broken, "zip")
    weights = next(broken.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-8] + b"\1" * 8)
    # Who asks for the version by its name while it loads waits for it, in vain.
    with (
        Clients(
            server, "dlrm", [json.dumps(REQUEST).encode()] * 3, versions=["2.0"], timeout_s=120
        ) as clients,
        pytest.raises(ServingError, match=r"(?s)dlrm 2\.0 was not rolled out: .*dlrm 1\.0 answers as before"),
    ):
        roll_out(RolloutOptions(archive=broken, run_dir=server.run_dir.root, watch_s=0.0))
    assert clients.lost == []
    assert {status for _, status, _ in clients.answers} == {404, 503}
    assert any(b"GoingAway" in body for _, _, body in clients.answers)
    with management_client(server.run_dir, server.state) as client:
        assert [each.version for each in client.versions("dlrm")] == ["1.0"]
    with inference_client(server) as client:
        ask(client, "dlrm", REQUEST)


def test_keys_of_a_canary_ask_the_new_version_and_no_others(server: RunningServer, score: float) -> None:
    file = server.run_dir.rollout_file
    found: dict[str, set[float]] = {}
    stop = threading.Event()

    def ask_as_users() -> None:
        with DLRMClient(server.state.inference, canary=file, key_file=server.run_dir.key_file) as client:
            began = math.inf  # when the canary was first seen; the client looks into the file now and then
            while not stop.is_set():
                for key in (f"user_{i}" for i in range(20)):
                    counts = time.monotonic() > began + 2
                    (value,) = client.score(**REQUEST, key=key)
                    if RolloutFile(server.run_dir).model("dlrm").canary:
                        began = min(began, time.monotonic())
                        if counts:
                            found.setdefault(key, set()).add(round(float(value), 4))

    thread = threading.Thread(target=ask_as_users)
    thread.start()
    try:
        # Nobody of them is left when it is over: too few requests or not, the old version answers.
        done = roll_out(options(server, "2.0", canary=0.5, canary_s=10.0, watch_s=0.0, keep_s=0.0))
    finally:
        stop.set()
        thread.join()
    assert done.steps["canary"]["new"]["requests"] >= 50
    sides = [each for each in found.values() if len(each) == 1]
    values = {value for each in sides for value in each}
    assert len(values) == 2
    assert round(score, 4) in values
    wait_until_removed(server)
    roll_out(options(server, "1.0", watch_s=0.0, keep_s=0.0))
    wait_until_removed(server)


def test_round_after_round_nothing_is_lost(server: RunningServer, score: float) -> None:
    versions = [None] * CLIENTS + ["1.0", "2.0"]
    bodies = [json.dumps(REQUEST).encode()] * len(versions)
    # Who asks a version by its name while it loads waits for it.
    failed = worker_errors(server)
    with Clients(server, "dlrm", bodies, versions=versions, timeout_s=300.0) as clients:
        for _ in range(ROUNDS):
            for version in ("2.0", "1.0"):
                roll_out(options(server, version, watch_s=0.0, keep_s=0.0))
                wait_until_removed(server)
    assert clients.lost == []
    # TorchServe starts none anew of the workers that were removed, whose processes are gone.
    assert worker_errors(server) == failed
    end = time.monotonic() + 20
    while len(workers := [each for each in server_processes(server.run_dir) if is_worker(each)]) > 1:
        assert time.monotonic() < end, workers
        time.sleep(0.1)
    by_version: dict[str | None, set[float]] = {version: set() for version in versions}
    for client, status, body in clients.answers:
        if status == 200:
            by_version[versions[client]].add(json.loads(body)["predictions"][0])
        else:
            # Who asks by name hears that the version is not there.
            assert client >= CLIENTS
            assert status in (404, 503), body
    first, second = (pytest.approx(next(iter(by_version[version])), abs=1e-6) for version in ("1.0", "2.0"))
    assert all(each == score for each in by_version["1.0"])
    assert all(each == second and each != first for each in by_version["2.0"])
    assert all(each in (first, second) for each in by_version[None])
    assert len(by_version[None]) == 2

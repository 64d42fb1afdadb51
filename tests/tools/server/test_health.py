"""Readiness of a server, from its run directory and its management API."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from support.management import InMemoryManagement, version_of

from dlrm_factory.errors import ServingError
from dlrm_factory.tools.server import RunDir, ServerState, check_health, health_of

OWN = os.getpid()


@pytest.fixture
def state(store: Path) -> ServerState:
    return ServerState(
        pid=OWN,
        started=psutil.Process().create_time(),
        inference="http://127.0.0.1:9",
        management="http://127.0.0.1:9",
        metrics="http://127.0.0.1:9",
        grpc_inference="127.0.0.1:9",
        grpc_management="127.0.0.1:9",
        token_auth=False,
        models=("dlrm",),
        model_store=str(store),
        tmp=str(store),
    )


@pytest.fixture
def least(store: Path, add_archive: Callable[..., Path]) -> Callable[[int], None]:
    """Writes the archive that the model is from, which asks for so many workers."""

    def write(workers: int) -> None:
        path = add_archive()
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("model-config.yaml", f"minWorkers: {workers}\n")

    return write


@pytest.mark.parametrize(
    ("asked", "wanted", "pids", "ready"),
    [
        (1, 1, (OWN,), True),
        (2, 2, (OWN,), False),
        (2, 2, (OWN, OWN), True),
        (1, 4, (OWN,), True),  # scaled up: those that are there go on
        (2, 1, (OWN,), True),  # scaled down on purpose
        (2, 0, (), False),  # to none: every request gets 503
        (0, 0, (), True),  # meant so in the archive
    ],
)
def test_the_least_number_of_workers_makes_it_ready(
    run_dir: RunDir,
    state: ServerState,
    least: Callable[[int], None],
    asked: int,
    wanted: int,
    pids: tuple[int, ...],
    ready: bool,
) -> None:
    least(asked)
    found = check_health(run_dir, state, InMemoryManagement(version_of("1.0", pids=pids, wanted=wanted)))
    assert (found.live, found.ready) == (True, ready)
    assert bool(found.reason) != ready


def test_a_worker_that_loads_is_not_ready_and_the_reason_says_so(run_dir: RunDir, state: ServerState) -> None:
    found = check_health(run_dir, state, InMemoryManagement(version_of("1.0", pids=(OWN,), ready=False)))
    assert found.reason == 'model "dlrm" 1.0: 0 of 1 workers have loaded and replayed their golden requests'
    assert found.as_dict()["models"] == {"dlrm": {"version": "1.0", "ready_workers": 0, "needed": 1}}


def test_a_worker_whose_process_has_ended_does_not_count(run_dir: RunDir, state: ServerState) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    assert not check_health(run_dir, state, InMemoryManagement(version_of("1.0", pids=(process.pid,)))).ready


def test_versions_beside_the_default_do_not_count(run_dir: RunDir, state: ServerState) -> None:
    client = InMemoryManagement(version_of("1.0", pids=(OWN,)), version_of("2.0", pids=(OWN,), ready=False))
    assert check_health(run_dir, state, client).ready


def test_reasons_of_a_server_that_starts_hangs_or_drains(run_dir: RunDir, state: ServerState) -> None:
    client = InMemoryManagement()
    assert '"dlrm" is not registered yet' in check_health(run_dir, state, client).reason
    client.error = ServingError("too busy to answer")
    assert "too busy to answer" in check_health(run_dir, state, client).reason
    run_dir.draining_file.touch()
    assert "drains" in check_health(run_dir, state, client).reason


def test_no_server(run_dir: RunDir, state: ServerState) -> None:
    found = health_of(run_dir.root)
    assert (found.live, found.ready) == (False, False)
    assert "no server runs in" in found.reason
    run_dir.write_state(state)
    found = health_of(run_dir.root)
    assert (found.live, found.ready) == (True, False)
    assert "no server answers at http://127.0.0.1:9" in found.reason

"""The process beside a server comes back when it dies, and ends with the server."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from dlrm_factory.tools.server import RunDir
from dlrm_factory.tools.server.processes import launch_sidecar, server_processes

pytestmark = pytest.mark.slow


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    made = RunDir.at(tmp_path / "run")
    made.prepare()
    return made


@pytest.fixture
def server(run_dir: RunDir) -> Iterator[subprocess.Popen[bytes]]:
    """A process that stands for the server's."""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        state = {
            "pid": process.pid,
            "started": psutil.Process(process.pid).create_time(),
            "models": ["dlrm"],
            "token_auth": False,
            "model_store": str(run_dir.root),
            "tmp": str(run_dir.root / "tmp"),
        }
        addresses = dict.fromkeys(["inference", "management", "metrics"], "http://127.0.0.1:9")
        grpc = dict.fromkeys(["grpc_inference", "grpc_management"], "127.0.0.1:9")
        run_dir.state_file.write_text(json.dumps(state | addresses | grpc))
        yield process
        process.kill()


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def test_it_is_started_again_and_ends_with_the_server(
    run_dir: RunDir, server: subprocess.Popen[bytes]
) -> None:
    def children() -> list[psutil.Process]:
        return [each for each in server_processes(run_dir) if "--child" in each.cmdline()]

    launch_sidecar(run_dir)
    until(lambda: len(children()) == 1)
    (first,) = children()
    first.kill()
    until(lambda: [each.pid for each in children()] not in ([], [first.pid]))
    assert "is started again" in run_dir.sidecar_log.read_text()
    server.kill()
    server.wait()
    until(lambda: server_processes(run_dir) == [])

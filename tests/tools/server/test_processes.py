from __future__ import annotations

import os
import subprocess
import sys

import psutil

from dlrm_factory.tools.server.processes import MARK, server_processes, stop_processes
from dlrm_factory.tools.server.rundir import RunDir
from dlrm_factory.tools.server.server import running_server, stop_server

# Starts a child that ignores SIGTERM, says so, and waits for it.
STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("up", flush=True)
time.sleep(60)
"""


def start(code: str, run_dir: RunDir) -> subprocess.Popen[str]:
    environment = {**os.environ, MARK: str(run_dir.root)}
    process = subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "up\n"
    return process


def test_orphans_are_found_and_ended_even_if_they_ignore_it(run_dir, tmp_path):
    other = RunDir.at(tmp_path / "other")
    with start(STUBBORN, run_dir) as ours, start(STUBBORN, other) as theirs:
        assert [process.pid for process in server_processes(run_dir)] == [ours.pid]
        assert stop_processes(run_dir) == 1
        assert server_processes(run_dir) == []
        assert psutil.Process(ours.pid).status() == psutil.STATUS_ZOMBIE, "dead, though not yet waited for"
        assert theirs.poll() is None
        theirs.kill()


def test_nothing_to_stop(run_dir):
    assert stop_server(run_dir.root) == 0
    assert stop_server(run_dir.root / "never") == 0
    assert running_server(run_dir.root) is None
    assert not (run_dir.root / "never").exists()

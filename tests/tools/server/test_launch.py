from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dlrm_factory.errors import ServingError
from dlrm_factory.tools.server import processes
from dlrm_factory.tools.server.processes import launch_command, launch_environment, launch_sidecar
from dlrm_factory.tools.server.rundir import RunDir
from dlrm_factory.tools.server.settings import LOG_CONFIG
from dlrm_factory.tools.server.store import ServedModel

RUN = RunDir(root=Path("/run/dlrm"))
MODEL = ServedModel(name="dlrm", location="dlrm.mar", path=Path("/store/dlrm.mar"))


def environment():
    return launch_environment(
        RUN, java=Path("/jdk/bin/java"), tmp=Path("/t"), log_level="warn", access_log=False
    )


def test_the_command_is_torchserves_own_launcher_run_by_this_python():
    command = launch_command(RUN, [MODEL], Path("/store"), own_log_config=True)
    assert command[:5] == [sys.executable, "-m", "ts.model_server", "--start", "--ncs"]
    assert command[-2:] == ["--models", "dlrm=dlrm.mar"]
    assert str(LOG_CONFIG) in command
    assert "--log-config" not in launch_command(RUN, [MODEL], Path("/store"), own_log_config=False)


def test_workers_find_this_python_this_java_and_a_folder_of_their_own():
    found = environment()
    assert found["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)
    assert found["JAVA_HOME"] == "/jdk"
    assert found["TMPDIR"] == found["TEMP"] == "/t"


def test_variables_that_would_overrule_the_run_directory_are_dropped(monkeypatch):
    monkeypatch.setenv("TS_CONFIG_FILE", "/elsewhere")
    assert "TS_CONFIG_FILE" not in environment()


def test_a_copy_of_this_project_must_not_come_before_the_archives(monkeypatch, tmp_path):
    (tmp_path / "checkout" / "dlrm_factory").mkdir(parents=True)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "checkout"), "", "/opt/packages"]))
    assert environment()["PYTHONPATH"] == "/opt/packages"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (subprocess.CalledProcessError(3, "python"), "it ended with status 3"),
        (subprocess.TimeoutExpired("python", 60), "it did not come up within 60 s"),
        (OSError(12, "Cannot allocate memory"), "Cannot allocate memory"),
    ],
)
def test_a_process_beside_the_server_that_does_not_start(monkeypatch, tmp_path, error, said):
    def fail(*arguments, **options):
        raise error

    run_dir = RunDir.at(tmp_path)
    run_dir.prepare()
    monkeypatch.setattr(processes.subprocess, "run", fail)
    with pytest.raises(ServingError, match=rf"beside the server cannot be started: .*{said}.*sidecar\.log"):
        launch_sidecar(run_dir)

from __future__ import annotations

import os
import sys
from pathlib import Path

from dlrm_factory.tools.server.processes import launch_command, launch_environment
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

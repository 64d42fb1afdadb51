from __future__ import annotations

import os
import stat
from pathlib import Path

import psutil
import pytest
from support.lock_holder import lock_holder

from dlrm_factory.errors import ServingError
from dlrm_factory.tools.server.processes import is_running
from dlrm_factory.tools.server.rundir import RunDir, ServerState


def state(**changes) -> ServerState:
    values = {
        "pid": os.getpid(),
        "started": psutil.Process().create_time(),
        "inference": "http://127.0.0.1:1",
        "management": "http://127.0.0.1:2",
        "metrics": "http://127.0.0.1:3",
        "grpc_inference": "127.0.0.1:4",
        "grpc_management": "127.0.0.1:5",
        "token_auth": True,
        "models": ("dlrm",),
        "model_store": "/store",
        "tmp": "/nowhere",
    }
    return ServerState(**{**values, **changes})


def test_others_cannot_read_it_and_git_ignores_it(run_dir):
    assert stat.S_IMODE(run_dir.root.stat().st_mode) == 0o700
    assert (run_dir.root / ".gitignore").read_text() == "*\n"


def test_a_folder_with_files_of_others_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    before = tmp_path.stat().st_mode
    with pytest.raises(ServingError, match="holds files that are not a server's"):
        RunDir.at(tmp_path).prepare()
    RunDir.at(tmp_path).clear()
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    assert tmp_path.stat().st_mode == before


def test_a_file_is_not_a_folder(tmp_path):
    (tmp_path / "x").write_text("")
    with pytest.raises(ServingError, match="is a file"):
        RunDir.at(tmp_path / "x").prepare()


def test_state_is_read_back(run_dir):
    assert run_dir.read_state() is None
    run_dir.write_state(state())
    assert run_dir.read_state() == state()
    run_dir.state_file.write_text("{")
    assert run_dir.read_state() is None


def test_stale_states_are_not_running():
    assert is_running(state())
    assert not is_running(state(started=1.0)), "the pid was used again"
    assert not is_running(state(pid=2**22 + 1))


def test_clear_keeps_the_logs_alone(run_dir):
    run_dir.write_state(state())
    run_dir.key_file.write_text("{}")
    run_dir.ts_log.write_text("why")
    (run_dir.root / "tmp" / "models").mkdir()
    run_dir.clear()
    assert not run_dir.state_file.exists()
    assert not run_dir.key_file.exists()
    assert not (run_dir.root / "tmp").exists()
    assert run_dir.ts_log.read_text() == "why"


def test_a_long_path_gets_a_short_link_for_its_sockets(tmp_path):
    run_dir = RunDir.at(tmp_path / ("long" * 25))
    run_dir.prepare()
    tmp = run_dir.make_tmp()
    try:
        assert len(str(tmp)) < 85
        (tmp / "archive").write_text("on the disk of the run directory")
        assert (run_dir.root / "tmp" / "archive").is_file()
    finally:
        run_dir.write_state(state(tmp=str(tmp)))
        run_dir.clear()
    assert not tmp.parent.exists()


def test_a_second_start_at_the_same_time_is_refused(run_dir):
    refused = pytest.raises(ServingError, match="another `dlrm serve` is starting")
    with run_dir.locked(), refused, run_dir.locked():
        pass
    with run_dir.locked():
        pass


def test_a_start_that_was_killed_does_not_block_the_next_one(run_dir):
    with lock_holder(run_dir.locked) as holder:
        with pytest.raises(ServingError, match="another `dlrm serve` is starting"), run_dir.locked():
            pass
        holder.kill()
        holder.join(60)
        with run_dir.locked():
            pass


def test_a_run_directory_that_cannot_be_locked_is_named(run_dir):
    (run_dir.root / ".lock").mkdir()
    with (
        pytest.raises(ServingError, match=f"{run_dir.root} cannot be locked: Is a directory"),
        run_dir.locked(),
    ):
        pass


def test_sockets_fit_where_every_folder_is_deep(tmp_path, monkeypatch):
    deep = tmp_path / ("x" * 100)
    deep.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(deep))
    run_dir = RunDir.at(deep / "run")
    run_dir.prepare()
    tmp = run_dir.make_tmp()
    assert len(str(tmp)) <= 85
    assert tmp.resolve() == run_dir.root / "tmp"
    tmp.unlink()
    tmp.parent.rmdir()


def test_a_folder_with_the_secret_of_groups_is_taken(tmp_path: Path) -> None:
    run_dir = RunDir.at(tmp_path)
    run_dir.secret_file.write_text("a secret of hosts")
    run_dir.prepare()
    run_dir.clear()
    # The other hosts have a copy of it.
    assert run_dir.secret_file.read_text() == "a secret of hosts"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").touch()
    with pytest.raises(ServingError, match="holds files that are not a server's"):
        RunDir.at(tmp_path / "other").prepare()

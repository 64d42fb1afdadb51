"""Tasks of the process beside a server that fail do not end it."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from dlrm_factory.errors import ServingError
from dlrm_factory.tools.server import RunDir
from dlrm_factory.tools.sidecar.main import Turns


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    made = RunDir.at(tmp_path / "run")
    made.prepare()
    return made


def test_a_task_that_fails_takes_nothing_with_it_and_is_told_once_a_kind(
    run_dir: RunDir, caplog: pytest.LogCaptureFixture
) -> None:
    wrong: list[Exception | None] = [
        KeyError("model"),
        KeyError("model"),
        json.JSONDecodeError("no JSON", "", 0),
        None,
        json.JSONDecodeError("no JSON", "", 0),
        ServingError("the server hangs"),
    ]
    others = 0

    def first() -> None:
        error = wrong.pop(0)
        if error is not None:
            raise error

    def second() -> None:
        nonlocal others
        others += 1

    turns = Turns({"Removing": first, "Scaling": second})
    for _ in range(6):
        turns.take(run_dir)
    assert (wrong, others) == ([], 6)
    told = [(each.levelno, each.exc_info[0] if each.exc_info else None) for each in caplog.records]
    assert told == [
        (logging.ERROR, KeyError),
        (logging.ERROR, json.JSONDecodeError),
        (logging.ERROR, json.JSONDecodeError),
        (logging.WARNING, None),
    ]
    assert "Removing fails, and is tried again" in caplog.text


def test_nothing_is_done_while_the_server_drains(run_dir: RunDir) -> None:
    done: list[int] = []
    turns = Turns({"Scaling": lambda: done.append(1)})
    run_dir.draining_file.touch()
    turns.take(run_dir)
    assert done == []

"""Mistakes on the command line of `dlrm bench`."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from dlrm_factory.errors import DataError, ServingError
from dlrm_factory.tools.cli.bench import bench


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        (["http", "--image", "a.gif"], DataError, "cannot draw this format"),
        (["http", "--rate", "5", "--find-rate"], DataError, "give one of them"),
        (["http", "--processes", "4", "--connections", "2"], DataError, "at most one for each"),
        (["http", "--find-rate", "--p99", "50 parsecs"], DataError, "give a time such as 50ms"),
        (["http", "--find-rate", "--p99", "0ms"], DataError, "give a time such as 50ms"),
        (["http", "--run-dir", "none"], ServingError, "no server runs in"),
        (["http", "--url", "http://127.0.0.1:1"], ServingError, "with --declaration"),
        (["http", "--url", "http://127.0.0.1:1", "--declaration", "tiny"], ServingError, "no server answers"),
        (["memory", "--workers", "2,1"], DataError, "give numbers that rise"),
        (["memory", "--workers", "one"], DataError, "give numbers such as 1,2,4"),
        (["memory", "--generate", "big"], DataError, "is not a size"),
        (["memory", "--folder", "none/there"], DataError, "no folder can be made"),
    ],
)
def test_a_mistake_is_one_message(words, error, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(bench, words)
    assert isinstance(done.exception, error)
    assert message in str(done.exception)
    assert list(tmp_path.iterdir()) == []


def test_help_names_every_benchmark():
    printed = CliRunner().invoke(bench, ["--help"]).output
    assert all(name in printed for name in ("http", "memory", "score"))

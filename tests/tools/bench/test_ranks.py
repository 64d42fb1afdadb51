"""`dlrm bench ranks`: every group and batch size is timed, with its parts."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from dlrm_factory.config import tiny
from dlrm_factory.tools.cli.main import app


@pytest.mark.multiprocess
def test_groups_are_timed_against_one_process() -> None:
    options = ["--eager", "--group", "2", "--batch", "1", "--batch", "3000", "--seconds", "0.1"]
    done = CliRunner().invoke(app, ["bench", "ranks", "tiny", *options, "--json"])
    assert done.exit_code == 0, done.output
    one, many = json.loads(done.stdout)
    assert [(row["ranks"], row["batch"], row["engine"]) for row in (one, many)] == [
        (2, 1, "eager"),
        (2, 3000, "eager"),
    ]
    declaration = tiny()
    numbers = 4 * (len(declaration.dense_features) + len(declaration.sparse_features))
    # Half of the samples stay with the leader; a batch of one still takes the first message.
    assert one["scattered"] == 8192
    assert many["scattered"] == pytest.approx(8192 / 3000 + numbers / 2)
    assert many["gathered"] == pytest.approx(4 / 2, rel=0.01)
    for row in (one, many):
        parts = [row[part] for part in ("scatter", "lookup", "gather", "ping", "alone")]
        assert min(parts) > 0
        assert row["p50"] <= row["p99"]
        assert row["samples_per_s"] == pytest.approx(1e3 * row["batch"] / row["p50"])

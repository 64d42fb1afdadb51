from __future__ import annotations

import json

from typer.testing import CliRunner

from dlrm_factory.config import tiny
from dlrm_factory.tools.bench.handle import Work, measure_handling
from dlrm_factory.tools.cli.bench import bench


def test_every_part_of_the_work_is_timed():
    work = [
        Work(requests=1, samples=1, body_format="rows"),
        Work(requests=5, samples=1, body_format="columns"),
    ]
    seen = []
    timings = measure_handling(tiny(), seconds=0.05, compiled=False, work=work, observe=seen.append)
    assert [timing.work for timing in timings] == work
    assert seen[-2:] == ["1 x 1, rows", "5 x 1, columns"]
    for timing in timings:
        parts = (timing.decode, timing.score, timing.encode, timing.json)
        assert all(part > 0 for part in parts)
        assert max(timing.decode, timing.score, timing.encode) < timing.total <= timing.slowest
        assert timing.size > 50


def test_the_command_prints_what_the_features_allow():
    done = CliRunner().invoke(bench, ["handle", "tiny", "--eager", "--seconds", "0.01", "--json"])
    assert done.exit_code == 0, done.output
    rows = json.loads(done.stdout)
    # TorchServe's own shape holds rows, and the tiny preset hashes an id.
    assert {row["work"]["body_format"] for row in rows} == {"columns", "rows"}
    assert {(row["work"]["requests"], row["work"]["samples"]) for row in rows} == {(1, 1), (64, 1), (1, 512)}
    table = CliRunner().invoke(
        bench, ["handle", "tiny", "--eager", "--seconds", "0.01"], env={"COLUMNS": "140"}
    )
    assert "64 x 1" in table.stdout
    assert "microseconds of CPU time a request" in table.stdout

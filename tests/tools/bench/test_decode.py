from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from dlrm_factory.config import demo, tiny
from dlrm_factory.tools.bench.decode import measure_decoding
from dlrm_factory.tools.cli.main import app


@pytest.mark.parametrize("declaration", [tiny(), demo()])
def test_every_kind_of_body_is_timed(declaration) -> None:
    seen: list[str] = []
    timings = measure_decoding(declaration, samples=3, seconds=0.0, observe=seen.append)
    assert [timing.body for timing in timings] == seen
    assert [timing.target for timing in timings if timing.target] == [4.0, 4.0, 2.0]
    assert all(timing.size > 0 and timing.loads > 0 and timing.ours > 0 for timing in timings)
    assert all(timing.ratio == timing.loads / timing.ours for timing in timings)


def test_the_command() -> None:
    runner = CliRunner()
    shown = runner.invoke(app, ["bench", "decode", "tiny", "--samples", "2", "--seconds", "0.01"])
    assert shown.exit_code == 0, shown.output
    assert "ratio" in shown.output
    assert "2 samples of 2 dense and 3 sparse features" in shown.output
    listed = runner.invoke(app, ["bench", "decode", "tiny", "--samples", "2", "--seconds", "0.01", "--json"])
    rows = json.loads(listed.stdout)
    assert [row["body"] for row in rows][:1] == ["columns"]
    assert rows[0].keys() == {"body", "size", "loads", "ours", "target", "ratio"}

"""`dlrm bench rankings`: which features a context has, and that both ways are timed and agree."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from dlrm_factory.config import criteo, tiny
from dlrm_factory.errors import DataError
from dlrm_factory.tools.bench.rankings import _ratio, context_features, measure_rankings
from dlrm_factory.tools.cli.bench import bench


def test_a_share_is_all_dense_features_and_the_first_sparse_ones() -> None:
    declaration = criteo()
    half = context_features(declaration, 0.5)
    assert half == [*declaration.dense_names, *(f"C{i}" for i in range(1, 8))]
    assert context_features(declaration, 0.25) == [f"C{i}" for i in range(1, 11)]
    assert context_features(declaration, 0.0) == []


def test_both_ways_are_timed_and_agree() -> None:
    (found,) = measure_rankings(
        tiny(), candidates=[40], contexts=[["price", "age_days", "user_id"]], seconds=0.01, compiled=False
    )
    assert found.candidates == 40
    assert found.difference < 1e-5
    assert min(found.joint, found.once, found.request_joint, found.request_once) > 0
    assert min(found.ratio, found.request_ratio) > 0


def test_the_command_prints_what_was_measured() -> None:
    words = ["rankings", "tiny", "--eager", "--seconds", "0.01", "--candidates", "3", "--context", "user_id"]
    done = CliRunner().invoke(bench, [*words, "--json"])
    assert done.exit_code == 0, done.output
    (row,) = json.loads(done.stdout)
    assert (row["candidates"], row["shared"]) == (3, ["user_id"])
    printed = CliRunner().invoke(bench, words).output
    assert "milliseconds of CPU time a ranking" in printed


def test_a_context_of_unknown_features_is_a_mistake() -> None:
    with pytest.raises(DataError, match=r'"usr_id" is not a feature of this model; did you mean "user_id"'):
        measure_rankings(tiny(), candidates=[3], contexts=[["usr_id"]])


def test_a_busy_moment_does_not_move_the_ratio() -> None:
    assert _ratio([3.0, 30.0, 3.0], [2.0, 20.0, 2.0]) == pytest.approx(1.5)

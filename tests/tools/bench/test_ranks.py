"""`dlrm bench ranks`: every group and batch size is timed, with its parts."""

from __future__ import annotations

import json

import msgspec
import pytest
from support.nets import trusted
from typer.testing import CliRunner

from dlrm_factory.tools.bench.ranks import batch_of, measure_ranks
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
    # One process scores a lone sample; of the others each rank scores half. What crosses is what must, and heads.
    assert one["least"] == pytest.approx(one["sent"], abs=150)
    assert many["least"] < many["sent"] < 1.1 * many["least"]
    for row in (one, many):
        parts = [row[part] for part in ("scatter", "lookup", "exchange", "dense", "gather", "ping", "alone")]
        assert min(parts) > 0
        assert row["p50"] <= row["p99"]
        assert row["samples_per_s"] == pytest.approx(1e3 * row["batch"] / row["p50"])


@pytest.mark.multiprocess
def test_sequences_are_as_long_as_their_pooling_factor_says() -> None:
    declaration = trusted("din")
    features = [
        msgspec.structs.replace(f, pooling_factor=24.6) if f.name == "history" else f
        for f in declaration.sparse_features
    ]
    tables = [msgspec.structs.replace(table, sharding="table_wise") for table in declaration.tables]
    declaration = msgspec.structs.replace(declaration, sparse_features=features, tables=tables)
    assert batch_of(declaration, 3).lengths.tolist() == [[1] * 3, [1] * 3, [25] * 3]
    (found,) = measure_ranks(declaration, groups=[2], batches=[256], seconds=0.1, compiled=False)
    # Half of the samples are scored where the table of items is not: 26 vectors of 8 numbers.
    assert found.least > 26 * 8 * 4 / 2
    assert found.least < found.sent < 1.01 * found.least

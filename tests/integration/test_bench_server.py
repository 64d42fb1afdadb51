"""`dlrm bench http` and `dlrm bench memory` on a real TorchServe."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.batches import uncompiled
from support.server import serving
from typer.testing import CliRunner

from dlrm_factory.config import parse_bytes
from dlrm_factory.tools.bench.random_archive import archive_random_model, criteo_of_size
from dlrm_factory.tools.cli.bench import bench
from dlrm_factory.tools.server import RunningServer

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("bench")
    archive = archive_random_model(uncompiled(criteo_of_size(parse_bytes("1MB"))), folder)
    with serving(archive.parent, "dlrm=dlrm", run_dir=folder / "run") as running:
        yield running


def run(*words: object) -> tuple[int, str]:
    done = CliRunner().invoke(bench, [str(word) for word in words])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.output
    return done.exit_code, done.stdout


def bench_http(server: RunningServer, *words: object) -> dict[str, Any]:
    code, printed = run(
        "http", "--run-dir", server.run_dir.root, "--json", "--duration", 1, "--warmup", 0.2, *words
    )
    assert code == 0
    found: dict[str, Any] = json.loads(printed)
    return found


@pytest.mark.parametrize("shape", ["1", "mlperf"])
def test_a_closed_loop(server: RunningServer, shape: str, tmp_path: Path) -> None:
    found = bench_http(server, "--shape", shape, "--connections", 2, "--image", tmp_path / "a.svg")
    assert found["statuses"].keys() == {"200"}
    assert found["failures"] == {}
    assert found["requests_per_s"] > 0
    samples = found["samples_per_s"] / found["requests_per_s"]
    assert samples == 1 if shape == "1" else 100 <= samples <= 700
    assert 0 < found["latency_ms"]["p50"] <= found["latency_ms"]["p99"] <= found["latency_ms"]["max"]
    assert {use["name"] for use in found["server_processes"]} >= {"frontend", "worker"}
    assert (tmp_path / "a.svg").is_file()


def test_an_open_loop_of_a_files_requests(server: RunningServer, tmp_path: Path) -> None:
    file = tmp_path / "requests.jsonl"
    file.write_text('{"inputs": {"C1": [0, 1]}}\n{"instances": [{"nonsense": 1}]}\n')
    found = bench_http(server, "--requests", file, "--rate", 40)
    assert found["offered_requests_per_s"] == 40
    # Every other request is wrong, and has an answer of its own.
    assert found["statuses"].keys() == {"200", "400"}


def test_the_highest_rate(server: RunningServer) -> None:
    found = bench_http(server, "--find-rate", "--p99", "2s", "--connections", 2)
    assert 0 < found["highest_rate"] <= 1.2 * found["closed_loop"]["requests_per_s"]
    assert all(trial["held"] == (trial["rate"] <= found["highest_rate"]) for trial in found["trials"])


def test_workers_share_the_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "none")  # what is compiled is not what is weighed
    _, printed = run("memory", "--generate", "60MB", "--workers", "1,2", "--folder", tmp_path, "--json")
    found = json.loads(printed)
    assert found["table_bytes"] >= 60_000_000
    assert [len(scale["workers"]) for scale in found["scales"]] == [1, 2]
    for scale in found["scales"]:
        assert scale["touched"]
        assert scale["imports"]["own"] > 50_000_000
        for worker in scale["workers"]:
            assert worker["memory"]["table_pages"] > 58_000_000
            assert worker["memory"]["private_table_copies"] == 0
    assert found["loading"]["read_s"] > 0
    assert list(tmp_path.iterdir()) == []

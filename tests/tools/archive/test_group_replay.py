"""`dlrm verify --ranks`: golden requests through a group of this host's processes."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from pathlib import Path

import msgspec
import psutil
import pytest
from support.batches import uncompiled
from support.hosts import listens_everywhere
from support.nets import trusted
from support.sequences import with_shardings
from support.sharding import mixed_shardings
from typer.testing import CliRunner

from dlrm_factory.config.options import ShardingOptions
from dlrm_factory.errors import DLRMError, WeightsError
from dlrm_factory.goldens import Goldens, add_goldens, read_goldens
from dlrm_factory.goldens.file import write_goldens
from dlrm_factory.scorer import EAGER_TOLERANCE
from dlrm_factory.tools.archive import verification
from dlrm_factory.tools.archive.group_replay import replay_in_group
from dlrm_factory.tools.bench.score import RandomWeights
from dlrm_factory.tools.cli.main import app
from dlrm_factory.weights.seal import read_seal
from dlrm_factory.weights.sealed import reseal, seal_weights


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    folder = tmp_path / "sealed"
    seal_weights(RandomWeights(uncompiled(mixed_shardings())), folder)
    add_goldens(folder)
    return folder


class Listeners(threading.Thread):
    """Addresses of all interfaces that this process and its ranks listen on, looked up again and again."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.seen: dict[int, set[str]] = {}
        self._stopped = threading.Event()

    def run(self) -> None:
        while not self._stopped.wait(0.05):
            for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
                with contextlib.suppress(psutil.Error, OSError):
                    if process.pid == os.getpid() or "multiprocessing.forkserver" in " ".join(
                        process.cmdline()
                    ):
                        self.seen.setdefault(process.pid, set()).update(listens_everywhere(process.pid))

    def __enter__(self) -> Listeners:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self.join()


@pytest.mark.multiprocess
def test_a_group_reproduces_the_golden_requests(sealed: Path) -> None:
    with Listeners() as listeners:
        done = CliRunner().invoke(app, ["verify", str(sealed), "--ranks", "2", "--json"])
    assert done.exit_code == 0, done.output
    # Neither the ranks nor torchrun's agent, in this process, nor the one that ranks are forked from.
    assert len(listeners.seen) >= 4
    assert not any(listeners.seen.values())
    group = json.loads(done.stdout)["group"]
    assert group["ranks"] == 2
    assert group["requests"] == len(read_goldens(sealed))
    assert group["largest"].keys() == {"eager"}
    assert group["largest"]["eager"] <= 1e-5
    assert set(group["shardings"].values()) == {"row_wise", "column_wise", "data_parallel"}
    assert len(group["rank_bytes"]) == 2
    assert min(group["rank_bytes"]) > 0


@pytest.mark.multiprocess
def test_a_group_reproduces_golden_requests_with_sequences(tmp_path: Path) -> None:
    declaration = with_shardings(
        trusted("shared_towers"), "row_wise", "table_wise", "column_wise", "row_wise"
    )
    seal_weights(RandomWeights(uncompiled(declaration)), tmp_path)
    add_goldens(tmp_path)
    found = replay_in_group(tmp_path, 2)
    assert found.shardings["t_history"] == "row_wise"
    assert found.largest["eager"] <= 1e-5


@pytest.mark.multiprocess
def test_a_wrong_expectation_is_named(sealed: Path) -> None:
    goldens = read_goldens(sealed)
    first, *others = goldens.requests
    wrong = type(first)(request=first.request, expected=1 - first.expected + 2 * EAGER_TOLERANCE)
    write_goldens(Goldens(requests=[wrong, *others]), sealed)
    reseal(sealed, read_seal(sealed))
    with pytest.raises(DLRMError, match=f"golden request 1 of {len(goldens)} "):
        replay_in_group(sealed, 2)


def test_declared_ranks_are_replayed_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(verification, "replay_in_group", lambda _, ranks: asked.append(ranks))
    sharding = ShardingOptions(world_size=4, hosts=2)
    seal_weights(
        RandomWeights(msgspec.structs.replace(uncompiled(mixed_shardings()), sharding=sharding)), tmp_path
    )
    add_goldens(tmp_path)
    # One process verifies all else, whatever is declared.
    verification.verify(tmp_path)
    verification.verify(tmp_path, ranks=3)
    assert asked == [2, 3]


def test_without_golden_requests(tmp_path: Path) -> None:
    seal_weights(RandomWeights(uncompiled(mixed_shardings())), tmp_path)
    with pytest.raises(WeightsError, match="has no golden requests"):
        replay_in_group(tmp_path, 2)

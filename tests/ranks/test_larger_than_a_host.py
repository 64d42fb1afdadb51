"""Tables that one host's memory cannot hold are served from the memory of two."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import small_hosts
from support.mapped_files import cached
from support.memory_groups import memory_groups
from support.processes import end_of, ranks

from dlrm_factory.tools.bench.score import RandomWeights
from dlrm_factory.weights.sealed import SealedWeights, seal_weights

pytestmark = pytest.mark.multiprocess

MB = 1 << 20
ROWS = 300_000  # of each of four tables: 81.6 MB
# Half of the tables, 40.8 MB, and what a rank's process takes beside the memory that it was forked with, some 25 MB.
LIMIT = 72 * MB
SLACK = 2 * MB  # pages that the kernel reads or maps around those that were touched


@dataclass(frozen=True, kw_only=True)
class Served:
    """Findings of each rank of one and of two hosts. ``reason``: why there is no bounded host, if so."""

    one: list[dict[str, Any]]
    two: list[dict[str, Any]]
    reason: str | None


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    folder = tmp_path_factory.mktemp("hosts")
    folders = [folder / "a", folder / "b"]
    folders[0].mkdir()
    seal_weights(RandomWeights(small_hosts.large_model(ROWS)), folders[0])
    shutil.copytree(folders[0], folders[1])
    for each in folders:
        SealedWeights(each)  # proves it, so that its ranks need not read it whole
    reason = why_unbounded(folders[0])
    if reason:
        found = Served(one=[], two=serve(folders, None, folder / "two"), reason=reason)
    else:
        with memory_groups(1, LIMIT) as groups:
            one = serve(folders[:1], groups, folder / "one")
        with memory_groups(2, LIMIT) as groups:
            found = Served(one=one, two=serve(folders, groups, folder / "two"), reason=None)
    shutil.rmtree(folder)
    return found


def why_unbounded(folder: Path) -> str | None:
    try:
        with memory_groups(1, LIMIT):
            pass
    except OSError as error:
        return f"no control group of memory can be made here: {error}"
    small_hosts.drop_from_cache(folder)
    if cached(folder / "tables.bin"):
        return f"the file system of {folder} keeps its files in memory"
    return None


def serve(folders: list[Path], groups: list | None, out: Path) -> list[dict[str, Any]]:
    out.mkdir(exist_ok=True)
    for folder in folders:
        small_hosts.drop_from_cache(folder)
    with ranks(small_hosts.serve, folders, groups, out, size=len(folders)) as processes:
        assert end_of(processes, within_s=60) == [0] * len(folders)
    return [json.loads((out / f"{rank}.json").read_text()) for rank in range(len(folders))]


def test_each_rank_has_its_share_of_the_table_file_in_memory(served: Served) -> None:
    planned = [rank["planned"] for rank in served.two]
    assert planned == [2 * 68 * ROWS] * 2
    for rank in served.two:
        # The file is mapped whole, and every row of the model was asked for.
        assert 0.9 * rank["planned"] < rank["resident"] <= rank["planned"] + SLACK


def test_two_hosts_read_nothing_where_one_reads_for_most_requests(served: Served) -> None:
    if served.reason:
        pytest.skip(served.reason)
    one, two = served.one[0], served.two[0]
    for name, found in (("one host", one), ("two hosts", two)):
        print(
            f"{name} of {LIMIT // MB} MiB: {found['reading']:.0%} of requests read, {found['faults']:.1f} major faults "
            f"and {found['read_bytes'] / 1e3:.0f} kB each, {found['samples_per_s']:.0f} samples/s, p50 "
            f"{found['p50_ms']:.1f} ms, p99 {found['p99_ms']:.1f} ms"
        )
    assert one["reading"] > 0.9
    assert one["read_bytes"] > 0
    # A page or two may be of a library; none is of the tables.
    assert two["faults"] < 0.1
    assert two["read_bytes"] < 0.01 * one["read_bytes"]
    np.testing.assert_allclose(one["logits"], two["logits"], rtol=0, atol=1e-6)
    # Random rows of so large tables are small, and so is what they make of a score.
    assert np.ptp(one["logits"]) > 5e-5

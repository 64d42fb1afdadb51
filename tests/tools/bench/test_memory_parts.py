"""Parts of the memory benchmark, without a server."""

from __future__ import annotations

import json
import mmap
import os
import subprocess
import sys

import pytest

from dlrm_factory.config import criteo, demo
from dlrm_factory.errors import ConfigError, ServingError
from dlrm_factory.model.dtypes import row_bytes
from dlrm_factory.tools.bench.memory.loading import measure_loading
from dlrm_factory.tools.bench.memory.measuring import touching_bodies
from dlrm_factory.tools.bench.memory.smaps import mapped_file, memory_of
from dlrm_factory.tools.bench.random_archive import archive_random_model, criteo_of_size, table_bytes

PAGE = 4096
NAME = "memory-parts.bin"  # no other file that this process maps has it
MB = 1 << 20


def test_memory_counts_what_is_taken():
    before = memory_of(os.getpid())
    # Mapped anew: memory that this process had before and freed would not be counted again.
    with mmap.mmap(-1, 40 * MB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as taken:
        for offset in range(0, 40 * MB, PAGE):
            taken[offset] = 1
        after = memory_of(os.getpid())
    assert 39 * MB < after.private - before.private < 60 * MB
    assert after.own == after.private


def test_pages_of_the_table_file_are_not_a_workers_own(tmp_path):
    path = tmp_path / NAME
    path.write_bytes(os.urandom(MB) * 16)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapping:
        memory_of(os.getpid(), NAME)  # takes memory itself the first time
        before = memory_of(os.getpid(), NAME)
        assert sum(mapping[::PAGE]) > 0
        after = memory_of(os.getpid(), NAME)
        assert after.table_pages - before.table_pages > 15 * MB
        assert abs(after.own - before.own) < MB
        assert after.private_table_copies == 0
        assert mapped_file(os.getpid(), NAME) == path
    assert mapped_file(os.getpid(), NAME) is None


def test_a_private_copy_of_the_tables_is_a_workers_own(tmp_path):
    path = tmp_path / NAME
    path.write_bytes(os.urandom(MB) * 16)
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as mapping:
        before = memory_of(os.getpid(), NAME)
        for offset in range(0, 16 * MB, PAGE):
            mapping[offset] = 1
        after = memory_of(os.getpid(), NAME)
        assert after.private_table_copies == 16 * MB
        # A little less where the process has freed pages of its own meanwhile.
        assert after.own - before.own > 12 * MB


def test_the_memory_of_a_process_that_is_gone():
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    process.wait()
    with pytest.raises(ServingError, match="cannot be read"):
        memory_of(process.pid)


def test_touching_bodies_reach_every_page():
    declaration = criteo(cap=3000)
    touched = {feature.name: set() for feature in declaration.sparse_features}
    for body in touching_bodies(declaration):
        inputs = json.loads(body.content)["inputs"]
        assert {len(rows) for rows in inputs.values()} == {body.samples}
        for name, rows in inputs.items():
            touched[name] |= set(rows)
    for feature in declaration.sparse_features:
        table = declaration.table(feature.table)
        size = row_bytes(table.dtype, table.embedding_dim)
        assert max(touched[feature.name]) == table.num_embeddings - 1
        pages = {row * size // PAGE for row in touched[feature.name]}
        assert pages >= set(range(table.num_embeddings * size // PAGE))


def test_hashed_ids_cannot_name_pages():
    with pytest.raises(ConfigError, match="does not take rows as ids"):
        touching_bodies(demo())


@pytest.mark.parametrize("size", [100_000, 50_000_000, 5_000_000_000])
def test_a_generated_model_has_the_asked_size(size):
    # Tables are capped at whole rows, and a row more or less changes every table.
    assert size <= table_bytes(criteo_of_size(size)) < size + 26 * 68


def test_a_model_larger_than_the_shape():
    with pytest.raises(ConfigError, match="ask for less"):
        criteo_of_size(10**12)


@pytest.mark.slow
def test_loading_is_timed_in_a_process_of_its_own(tmp_path):
    archive = archive_random_model(criteo_of_size(2_000_000), tmp_path)
    loading = measure_loading(archive)
    assert loading.bytes >= 2_000_000
    assert min(loading.read_s, loading.map_s, loading.touch_s) > 0
    assert loading.model_s > loading.map_s

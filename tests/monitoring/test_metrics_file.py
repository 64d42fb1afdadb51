"""Files of workers' metrics: written, read, and refused where they are none."""

from __future__ import annotations

import os

import pytest

from dlrm_factory.monitoring.families import BATCH_REQUESTS, REQUESTS, WORKERS
from dlrm_factory.monitoring.metrics_file import DriftPart, MetricsFile, read_metrics_file

FAMILIES = {REQUESTS: [("rows", "200"), ("rows", "400")], BATCH_REQUESTS: [()], WORKERS: [("eager",)]}


def make(path, **more):
    return MetricsFile(path, model="shop", version="2", model_dir="/models/1", families=FAMILIES, **more)


def test_numbers_come_back(tmp_path):
    parts = [DriftPart(kind="dense", feature="price", shares=[0.5, 0.5])]
    file = make(tmp_path / "1.metrics", drift=parts, blocks=3)
    file.numbers(REQUESTS)[:] = [[7], [8]]
    file.numbers(BATCH_REQUESTS)[0, 2] = 5
    file.drift_blocks()[1] = [1, 4, 3, 1]
    reading = read_metrics_file(tmp_path / "1.metrics")
    assert (reading.head.model, reading.head.version, reading.head.pid) == ("shop", "2", os.getpid())
    requests, batches, _ = reading.head.families
    assert reading.family(requests).tolist() == [[7.0], [8.0]]
    assert reading.family(batches).shape == (1, len(BATCH_REQUESTS.buckets) + 2)
    assert reading.family(batches)[0, 2] == 5
    assert reading.drift_window(1, now=1.5)[1].tolist() == [3.0, 1.0]
    assert reading.lives()
    assert (tmp_path / "1.metrics").stat().st_mode & 0o077 == 0


def test_a_worker_whose_pid_is_used_again_does_not_live(tmp_path):
    file = make(tmp_path / "1.metrics")
    reading = read_metrics_file(tmp_path / "1.metrics")
    from msgspec.structs import replace

    assert not replace(reading, head=replace(file.head, process_start=file.head.process_start + 1)).lives()


@pytest.mark.parametrize("length", [0, 7, 20, 400, -8])
def test_a_file_that_was_cut_is_refused(tmp_path, length):
    make(tmp_path / "1.metrics")
    whole = (tmp_path / "1.metrics").read_bytes()
    (tmp_path / "2.metrics").write_bytes(whole[:length])
    with pytest.raises(ValueError, match=r"2\.metrics"):
        read_metrics_file(tmp_path / "2.metrics")

"""Settings of a worker's process: lines, memory, threads, the garbage collector."""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from support.checkout import ROOT

from dlrm_factory.config import ServingOptions
from handler.worker import (
    freeze_loaded,
    keep_memory,
    lines_wanted,
    prepare_worker,
    quiet_reads,
    share_cores,
    thin_out_times,
)


class Metrics:
    """TorchServe's metrics, as far as they are called here."""

    def __init__(self) -> None:
        self.seen: list[tuple[Any, ...]] = []

    def add_time(self, name: str, value: float, *more: Any, unit: str = "ms") -> None:
        self.seen.append((name, value, *more, unit))


@pytest.fixture
def _threads_restored() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_prediction_times_come_once_a_second() -> None:
    metrics, now = Metrics(), 100.0
    thin_out_times(metrics, clock=lambda: now)
    for now in (100.0, 100.2, 100.999, 101.0, 101.5, 107.0, 107.1):
        metrics.add_time("PredictionTime", now)
    assert [value for _, value, _ in metrics.seen] == [100.0, 101.0, 107.0]


def test_other_times_all_come() -> None:
    metrics = Metrics()
    thin_out_times(metrics, clock=lambda: 0.0)
    for value in (1.0, 2.0):
        metrics.add_time("DecodeTime", value, "idx", unit="s")
    assert metrics.seen == [("DecodeTime", 1.0, "idx", "s"), ("DecodeTime", 2.0, "idx", "s")]


def test_the_line_of_every_batch_goes_and_warnings_stay(caplog: pytest.LogCaptureFixture) -> None:
    module = ModuleType("protocol")
    module.logging = logging  # type: ignore[attr-defined]
    quiet_reads(module)
    with caplog.at_level(logging.INFO):
        module.logging.info("Backend received inference at: %d", 1)
        module.logging.warning("Failed json decoding")
    assert [record.getMessage() for record in caplog.records] == ["Failed json decoding"]


@pytest.mark.parametrize(
    ("level", "wanted"), [(None, False), ("warn", False), ("error", False), ("info", True), ("DEBUG", True)]
)
def test_the_log_level_brings_them_back(
    level: str | None, wanted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DLRM_LOG_LEVEL", raising=False)
    if level is not None:
        monkeypatch.setenv("DLRM_LOG_LEVEL", level)
    assert lines_wanted() == wanted


@pytest.mark.usefixtures("_threads_restored")
@pytest.mark.parametrize(
    ("workers", "threads", "warned"), [(1, 1, False), (4, 1, False), (2, 2, False), (2, 3, True)]
)
def test_more_threads_than_cores_are_one_warning(
    workers: int,
    threads: int,
    warned: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    share_cores(ServingOptions(min_workers=workers, max_workers=workers, threads=threads))
    assert torch.get_num_threads() == threads
    assert [record.getMessage()[:43] for record in caplog.records] == (
        ["2 workers of 3 threads share 4 cores; a thr"] if warned else []
    )


def test_what_is_loaded_is_out_of_the_collectors_sight() -> None:
    before = gc.get_freeze_count()
    gc.disable()  # as in a worker that loads
    try:
        freeze_loaded()
        assert gc.isenabled()
        assert gc.get_freeze_count() > before
        assert len(gc.get_objects()) < 10_000
    finally:
        gc.enable()
        gc.unfreeze()


def test_outside_a_worker_no_reads_are_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "ts.protocol.otf_message_handler", raising=False)
    metrics = Metrics()
    prepare_worker("0.12.0", metrics)
    metrics.add_time("PredictionTime", 1.0)
    metrics.add_time("PredictionTime", 2.0)
    assert len(metrics.seen) == 2


def test_an_unknown_torchserve_is_left_as_it_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    unknown = ModuleType("ts.protocol.otf_message_handler")
    unknown.logging = logging  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ts.protocol.otf_message_handler", unknown)
    metrics = SimpleNamespace(add_time=print)
    prepare_worker("0.13.0", metrics)
    assert unknown.logging is logging
    assert metrics.add_time is print
    assert caplog.text.count("Requests are read field by field") == 1


FAULTS = """
import resource, sys
import numpy as np
from handler.worker import keep_memory
if sys.argv[1] == "kept":
    assert keep_memory()
def work():
    arrays = [np.ones(1_000_000, np.float32) for _ in range(4)]
for _ in range(5):
    work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library has no mallopt")
def test_memory_of_large_batches_stays() -> None:
    faults = {
        how: int(
            subprocess.run(
                [sys.executable, "-c", FAULTS, how],
                cwd=ROOT,
                capture_output=True,
                text=True,
                timeout=60,
                check=True,
            ).stdout
        )
        for how in ("given back", "kept")
    }
    assert faults["kept"] < 200 < 10_000 < faults["given back"]


def test_a_c_library_without_mallopt_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace())
    assert not keep_memory()

"""Requests by reader, as TorchServe's metrics."""

from __future__ import annotations

from typing import Any

from dlrm_factory.requests.formats.fast import ReadCounts
from handler.metrics import FAILURES, FAST_READS, REFERENCE_READS, ReadMetrics


class Metrics:
    """TorchServe's metrics, which add to the dimensions in place."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, int]] = []

    def add_counter(self, name: str, value: int, *, dimensions: list[Any]) -> None:
        assert dimensions == []
        dimensions.append("Level")
        self.seen.append((name, value))


def test_what_came_since_the_last_report_comes_at_most_once_a_second() -> None:
    counts, metrics, now = ReadCounts(), Metrics(), 100.0
    counts.taken["columns"] = 16  # golden requests, before the worker was ready
    reads = ReadMetrics(counts, clock=lambda: now)
    reads.report(metrics)
    assert metrics.seen == []
    counts.taken["rows"] += 2
    counts.taken["gathered"] += 64
    now = 100.9
    reads.report(metrics)
    assert metrics.seen == []
    now = 101.0
    reads.report(metrics)
    assert metrics.seen == [(FAST_READS, 66)]
    counts.reference += 1
    counts.failed["rows"] += 1
    now = 107.0
    reads.report(metrics)
    assert metrics.seen[1:] == [(REFERENCE_READS, 1), (FAILURES, 1)]
    now = 109.0
    reads.report(metrics)
    assert len(metrics.seen) == 3


def test_metrics_that_fail_cost_no_batch(caplog: Any) -> None:
    counts = ReadCounts()
    reads = ReadMetrics(counts, every_s=0.0)
    for _ in range(3):
        counts.reference += 1
        reads.report(object())  # type: ignore[arg-type]
    (record,) = caplog.records
    assert "cannot be reported" in record.getMessage()


def test_without_metrics_nothing_is_reported() -> None:
    counts = ReadCounts()
    reads = ReadMetrics(counts)
    counts.reference += 1
    reads.report(None)
    metrics = Metrics()
    reads.report(metrics)
    assert metrics.seen == [(REFERENCE_READS, 1)]

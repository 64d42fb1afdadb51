"""Metrics of a worker's own beside TorchServe's: requests by the reader that took them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Protocol

from dlrm_factory.requests.formats.fast import ReadCounts

__all__ = ["FAILURES", "FAST_READS", "REFERENCE_READS", "Metrics", "ReadMetrics"]

logger = logging.getLogger(__name__)

FAST_READS, REFERENCE_READS, FAILURES = "DLRMFastReads", "DLRMReferenceReads", "DLRMFastReaderFailures"


class Metrics(Protocol):
    """TorchServe's metrics of a model."""

    def add_counter(self, name: str, value: int, *, dimensions: list[object]) -> None: ...


class ReadMetrics:
    """Counters of what ``counts`` has counted since this was made."""

    def __init__(
        self, counts: ReadCounts, *, every_s: float = 1.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._counts = counts
        self._every_s = every_s
        self._clock = clock
        self._due = clock()
        self._reported = self._now()

    def report(self, metrics: Metrics | None) -> None:
        """Add to ``metrics`` what came since the last report, at most once in ``every_s`` seconds.

        TorchServe prints a line for each, which its frontend reads and parses.
        """
        now = self._clock()
        if now < self._due or metrics is None:
            return
        self._due = now + self._every_s
        current = self._now()
        try:
            for name, value in current.items():
                if value > self._reported[name]:
                    # TorchServe adds its own to the dimensions, in place.
                    metrics.add_counter(name, value - self._reported[name], dimensions=[])
        except Exception:
            # It would fail the batch, whose answers are there.
            logger.exception("Requests by reader cannot be reported; no more reports are made")
            self._due = float("inf")
        self._reported = current

    def _now(self) -> dict[str, int]:
        counts = self._counts
        return {
            FAST_READS: counts.fast,
            REFERENCE_READS: counts.reference,
            FAILURES: counts.failures,
        }

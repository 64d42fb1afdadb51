"""Outcome of a load: rates, latencies, failures."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["PERCENTILES", "Outcome"]

PERCENTILES = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "p99.9": 99.9, "max": 100.0}

# A generator that is busy for more than this share of its core delays what it measures.
_BUSY = 0.8


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Outcome of one run.

    Fields:
        offered: requests a second that were to be sent; None in a closed loop.
        window_s: seconds measured.
        latencies: float64, sorted: seconds from the moment a request was to be sent to its whole answer, status 200.
        late: float64, sorted: seconds that the generator itself was late with a request, at a rate only.
        statuses: answers by HTTP status.
        failures: requests without an answer, by what happened.
        answered_in_window, samples_in_window: status 200.
        generator_cores: the share of a core that the busiest generator process used.
    """

    offered: float | None
    window_s: float
    latencies: npt.NDArray[np.float64]
    late: npt.NDArray[np.float64]
    statuses: dict[int, int]
    failures: dict[str, int]
    answered_in_window: int
    samples_in_window: int
    generator_cores: float

    @property
    def rate(self) -> float:
        """Requests answered with 200, a second."""
        return self.answered_in_window / self.window_s

    @property
    def sample_rate(self) -> float:
        """Samples scored a second."""
        return self.samples_in_window / self.window_s

    @property
    def failed(self) -> int:
        """Requests answered with another status, or not at all."""
        return sum(self.failures.values()) + sum(n for status, n in self.statuses.items() if status != 200)

    def latency_ms(self, percentile: float) -> float:
        """NaN without an answer. The smallest latency that ``percentile`` % of the answers do not exceed."""
        if not len(self.latencies):
            return float("nan")
        # 99.9 % of 1000 is a little more than 999 in floats.
        rank = math.ceil(len(self.latencies) * percentile / 100 - 1e-6)
        return float(self.latencies[max(rank, 1) - 1]) * 1000

    @property
    def generator_is_limit(self) -> bool:
        """True if the generator, not the server, may have set these numbers."""
        return self.generator_cores > _BUSY

    def as_dict(self) -> dict[str, Any]:
        """Encode for JSON. Latencies in ms."""
        answered = len(self.latencies) > 0
        return {
            "offered_requests_per_s": self.offered,
            "requests_per_s": self.rate,
            "samples_per_s": self.sample_rate,
            "window_s": self.window_s,
            "latency_ms": {name: self.latency_ms(p) for name, p in PERCENTILES.items()} if answered else None,
            "mean_latency_ms": float(self.latencies.mean()) * 1000 if answered else None,
            "statuses": {str(status): count for status, count in sorted(self.statuses.items())},
            "failures": self.failures,
            "generator_cores": self.generator_cores,
            "generator_late_ms_p99": float(np.percentile(self.late, 99)) * 1000 if len(self.late) else None,
        }

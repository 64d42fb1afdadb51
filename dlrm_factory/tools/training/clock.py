"""How long training takes, without what comes between."""

from __future__ import annotations

import time

__all__ = ["Clock"]


class Clock:
    """Seconds of training, and samples a second since the latest report."""

    def __init__(self, samples: int) -> None:
        self._samples = samples
        self.restart()

    def restart(self) -> None:
        self._started = self._reported = time.perf_counter()

    def seconds(self) -> float:
        return time.perf_counter() - self._started

    def speed(self, samples: int) -> float:
        now = time.perf_counter()
        speed = (samples - self._samples) / max(now - self._reported, 1e-9)
        self._samples, self._reported = samples, now
        return speed

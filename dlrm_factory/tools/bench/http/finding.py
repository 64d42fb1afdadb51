"""The highest rate at which p99 stays under a bound."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

from dlrm_factory.errors import ServingError
from dlrm_factory.tools.bench.http.driving import Load
from dlrm_factory.tools.bench.http.outcome import Outcome

__all__ = ["FoundRate", "Trial", "find_rate"]

# A rate is kept up if so much of it was answered within the window; the rest is still on its way.
_KEPT_UP = 0.97
_RUNS = 7
_CLOSE_ENOUGH = 0.04  # of the rate: runs differ by more than that
_OPEN_CONNECTIONS = 256


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One open-loop run, and whether the bound held at ``rate``."""

    rate: float
    held: bool
    outcome: Outcome


@dataclass(frozen=True, kw_only=True)
class FoundRate:
    """The highest rate that held (0.0 if none did), and all runs in the order of their rates."""

    rate: float
    bound_ms: float
    closed_loop: Outcome
    trials: tuple[Trial, ...]


def find_rate(
    load: Load,
    *,
    bound_ms: float,
    run: Callable[[Load, str], Outcome],
    runs: int = _RUNS,
) -> FoundRate:
    """Bisects between 0 and the rate of a closed loop over ``load``'s connections, with Poisson arrivals.

    Args:
        bound_ms: p99 from the moment a request was to be sent to its answer.
        run: does a load, e.g. `drive`; its second argument says what for.
        runs: the most open-loop runs.

    Raises:
        ServingError: not one request of the closed loop was answered with 200.
    """
    closed = run(dataclasses.replace(load, rate=None), "closed loop")
    if closed.rate == 0:
        raise ServingError(f"no request was answered with 200: {closed.statuses or closed.failures}")
    open_load = dataclasses.replace(load, connections=max(load.connections, _OPEN_CONNECTIONS))
    low, high = 0.0, 1.2 * closed.rate
    rate = 0.7 * closed.rate
    trials: list[Trial] = []
    for _ in range(runs):
        outcome = run(dataclasses.replace(open_load, rate=rate), f"{rate:,.0f} requests/s")
        trial = Trial(rate=rate, held=_holds(outcome, rate, bound_ms), outcome=outcome)
        trials.append(trial)
        low, high = (rate, high) if trial.held else (low, rate)
        if high - low < _CLOSE_ENOUGH * high:
            break
        rate = (low + high) / 2
    return FoundRate(
        rate=low,
        bound_ms=bound_ms,
        closed_loop=closed,
        trials=tuple(sorted(trials, key=lambda each: each.rate)),
    )


def _holds(outcome: Outcome, rate: float, bound_ms: float) -> bool:
    # Arrivals are random: so many as were really offered are the measure, not the nominal rate.
    offered = (len(outcome.latencies) + outcome.failed) / outcome.window_s
    kept_up = outcome.rate >= _KEPT_UP * min(rate, offered)
    return kept_up and outcome.failed == 0 and outcome.latency_ms(99) <= bound_ms

"""Highest rate that holds a bound on p99, found by open-loop trials, and the pictures of latencies."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dlrm_factory.errors import DataError, ServingError
from dlrm_factory.tools.bench.http.driving import Load
from dlrm_factory.tools.bench.http.outcome import PERCENTILES, Outcome

__all__ = [
    "FoundRate",
    "Trial",
    "check_picture",
    "draw_found_rate",
    "draw_latencies",
    "find_rate",
]

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


_FORMATS = (".svg", ".png", ".pdf")
_BLUE, _RED, _GREEN = "#4c78a8", "#e45756", "#54a24b"


def check_picture(path: Path) -> None:
    """DataError for a format that cannot be drawn: asked before the benchmark, not after it."""
    if path.suffix.lower() not in _FORMATS:
        raise DataError(f"{path}: cannot draw this format; use one of {', '.join(_FORMATS)}")


def draw_latencies(outcome: Outcome, title: str, path: Path) -> None:
    """A histogram of the latencies, and the latency that each share of the requests stays under."""
    figure, (left, right) = _figure(2)
    milliseconds = outcome.latencies * 1000
    edges = np.geomspace(max(milliseconds[0], 1e-3), milliseconds[-1] * 1.001, 60)
    left.hist(milliseconds, bins=edges, color=_BLUE)
    left.set(xscale="log", xlabel="latency, ms", ylabel="requests")
    _mark_percentiles(left, outcome)
    # On an axis of 1 - share the tail is as wide as the middle.
    shares = 1 - (np.arange(len(milliseconds)) + 0.5) / len(milliseconds)
    right.plot(shares, milliseconds, color=_BLUE)
    right.set(xscale="log", yscale="log", xlabel="share of requests that take longer", ylabel="latency, ms")
    right.invert_xaxis()
    right.grid(alpha=0.3)
    _save(figure, title, path)


def draw_found_rate(found: FoundRate, title: str, path: Path) -> None:
    """p50 and p99 over the offered rate, the bound, and the highest rate under it."""
    figure, (axes,) = _figure(1)
    rates = [trial.rate for trial in found.trials]
    for name, colour in (("p50", _BLUE), ("p99", _RED)):
        latencies = [trial.outcome.latency_ms(PERCENTILES[name]) for trial in found.trials]
        axes.plot(rates, latencies, marker="o", color=colour, label=name)
    axes.axhline(
        found.bound_ms, color=_RED, linestyle="--", linewidth=1, label=f"bound {found.bound_ms:g} ms"
    )
    axes.axvline(found.rate, color=_GREEN, linewidth=1, label=f"{found.rate:,.0f} requests/s")
    axes.set(yscale="log", xlabel="offered requests/s (Poisson arrivals)", ylabel="latency, ms")
    axes.grid(alpha=0.3)
    axes.legend()
    _save(figure, title, path)


def _mark_percentiles(axes: Any, outcome: Outcome) -> None:
    for name in ("p50", "p99"):
        latency = outcome.latency_ms(PERCENTILES[name])
        axes.axvline(latency, color=_RED, linewidth=1)
        axes.annotate(f" {name} {latency:.3g} ms", (latency, 0.97 if name == "p50" else 0.9),
                      xycoords=("data", "axes fraction"), fontsize=8)  # fmt: skip


def _figure(columns: int) -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        1, columns, figsize=(5.5 * columns, 4.2), layout="constrained", squeeze=False
    )
    return figure, axes[0]


def _save(figure: Any, title: str, path: Path) -> None:
    from matplotlib import pyplot

    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)

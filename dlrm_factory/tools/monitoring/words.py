"""Spans of time and rates as people read them."""

from __future__ import annotations

__all__ = ["age", "milliseconds", "rate"]

_UNITS = ((86_400.0, "d"), (3600.0, "h"), (60.0, "min"))


def age(seconds: float) -> str:
    """``45 s``, ``12 min``, ``3.5 h``, ``2.0 d``."""
    seconds = max(seconds, 0.0)
    for size, unit in _UNITS:
        if seconds >= size:
            count = seconds / size
            return f"{count:.0f} {unit}" if unit == "min" or count >= 10 else f"{count:.1f} {unit}"
    return f"{seconds:.0f} s"


def milliseconds(seconds: float | None) -> str:
    """``0.84 ms``, ``12 ms``; a dash if there is none."""
    if seconds is None:
        return "–"
    span = 1000 * seconds
    return f"{span:.2f} ms" if span < 10 else f"{span:.0f} ms"


def rate(value: float) -> str:
    """``1,234``, ``12.5``, ``0``."""
    return f"{value:,.0f}" if value >= 100 or not value else f"{value:.1f}"

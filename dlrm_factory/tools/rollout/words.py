"""Figures of a rollout's steps, and the lines that tell them."""

from __future__ import annotations

from typing import Any

from dlrm_factory.tools.rollout.judging import population_stability
from dlrm_factory.tools.rollout.watching import Watch

__all__ = ["count", "figures_of", "live_line", "reason_of", "shadow_line"]


def figures_of(watch: Watch, old: str, new: str) -> dict[str, Any]:
    """Figures of the versions ``old`` and ``new`` that ``watch`` has seen, and the PSI of their scores."""
    before, now = watch.figures(old), watch.figures(new)
    psi = population_stability(before.scores, now.scores)
    return {"old": before.as_dict(), "new": now.as_dict(), "psi": None if psi is None else round(psi, 4)}


def shadow_line(figures: dict[str, Any]) -> str:
    """One line of a shadow's figures."""
    top = figures["kept_of_top_10"]
    return (
        f"{figures['old']['requests']} live requests scored by both: {_score_line(figures)}, "
        f"top 10 kept {'–' if top is None else f'{top:.1%}'}, {_time_line(figures)}"
    )


def live_line(figures: dict[str, Any]) -> str:
    """One line of the figures of versions that clients ask, as `figures_of` gives them."""
    old, new = figures["old"], figures["new"]
    return (
        f"{new['requests']:,} requests ({old['requests']:,} of the old version), {new['errors']} errors: "
        f"{_score_line(figures)}, in the worker {_time_line(figures)}"
    )


def reason_of(error: BaseException) -> str:
    """Words for the error that ended a rollout."""
    if isinstance(error, KeyboardInterrupt):
        return "it was interrupted"
    return str(error) or type(error).__name__


def count(number: int, noun: str) -> str:
    """``1 request``, ``1,234 requests``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _score_line(figures: dict[str, Any]) -> str:
    old, new = figures["old"]["mean_score"], figures["new"]["mean_score"]
    psi = figures["psi"]
    means = "no scores" if old is None or new is None else f"mean {old:.4f} → {new:.4f}"
    return f"PSI {'– (too few scores)' if psi is None else f'{psi:.3f}'}, {means}"


def _time_line(figures: dict[str, Any]) -> str:
    parts = []
    for name in ("p50", "p99"):
        old, new = figures["old"][f"{name}_ms"], figures["new"][f"{name}_ms"]
        parts.append(f"{name} " + ("–" if old is None or new is None else f"{old:.2f} → {new:.2f} ms"))
    return ", ".join(parts)

"""Figures of two versions side by side, and the bounds that the new one must keep."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = [
    "RolloutBounds",
    "VersionFigures",
    "kept_of_top",
    "population_stability",
    "problems_of",
    "read_scores",
]

Float64 = npt.NDArray[np.float64]

# Differences of times below this are the machine's.
_SLACK_MS = 5.0
_BINS = 10
_TOP = 10
# Fewer say too little of a share, or of a percentile.
MIN_REQUESTS = 50
MIN_SCORES = 500


@dataclass(frozen=True, kw_only=True)
class RolloutBounds:
    """RolloutBounds of the new version's figures.

    Args:
        max_error_rate: share of requests answered with a 5xx.
        max_p99_ratio: p99 of the new version over that of the old one; differences below 5 ms do not count.
        max_psi: population stability index of scores; 0.1 is a small shift, 0.25 a large one.
    """

    max_error_rate: float = 0.01
    max_p99_ratio: float = 2.0
    max_psi: float = 0.25

    def as_dict(self) -> dict[str, float]:
        return {
            "max_error_rate": self.max_error_rate,
            "max_p99_ratio": self.max_p99_ratio,
            "max_psi": self.max_psi,
        }


@dataclass(frozen=True, kw_only=True)
class VersionFigures:
    """Figures of one version.

    Args:
        requests: with an answer of any status.
        errors: those with a 5xx.
        times: float64 [N], milliseconds, one a request.
        scores: float64 [M], probabilities or logits, as they were asked for.
    """

    requests: int
    errors: int
    times: Float64
    scores: Float64

    def as_dict(self) -> dict[str, Any]:
        """Rounded figures; None for those of nothing."""
        found: dict[str, Any] = {"requests": self.requests, "errors": self.errors, "scores": len(self.scores)}
        found["p50_ms"] = round(float(np.percentile(self.times, 50)), 3) if len(self.times) else None
        found["p99_ms"] = round(float(np.percentile(self.times, 99)), 3) if len(self.times) else None
        found["mean_score"] = round(float(self.scores.mean()), 6) if len(self.scores) else None
        return found


def problems_of(old: VersionFigures, new: VersionFigures, bounds: RolloutBounds) -> list[str]:
    """RolloutBounds that ``new`` breaks, one sentence each. Figures of too few requests or scores break none."""
    found = []
    if new.requests >= MIN_REQUESTS and new.errors / new.requests > bounds.max_error_rate:
        found.append(
            f"{new.errors} of {new.requests} requests got an error, {new.errors / new.requests:.1%}; "
            f"--max-error-rate is {bounds.max_error_rate:.1%}"
        )
    if min(len(old.times), len(new.times)) >= MIN_REQUESTS:
        before, now = (float(np.percentile(each.times, 99)) for each in (old, new))
        if now > bounds.max_p99_ratio * before and now > before + _SLACK_MS:
            found.append(
                f"p99 is {now:.1f} ms, {now / before:.1f} times the {before:.1f} ms of the old version; "
                f"--max-p99-ratio is {bounds.max_p99_ratio:g}"
            )
    psi = population_stability(old.scores, new.scores)
    if psi is not None and psi > bounds.max_psi:
        found.append(
            f"scores have shifted: PSI {psi:.3f}, mean {old.scores.mean():.4f} before and {new.scores.mean():.4f} "
            f"now; --max-psi is {bounds.max_psi:g}"
        )
    return found


def population_stability(old: Float64, new: Float64) -> float | None:
    """Population stability index of ``new`` scores against ``old`` ones, by the deciles of the old; None for too few.

    Scores below all old ones, or above, have bins of their own. Even of two samples of the same scores the index is
    some 10 × (1/len(old) + 1/len(new)).
    """
    if min(len(old), len(new)) < MIN_SCORES:
        return None
    deciles = np.quantile(old, np.linspace(0, 1, _BINS + 1))
    edges = np.unique([*deciles[:-1], np.nextafter(deciles[-1], np.inf)])
    # Half a score in each bin, so that an empty one has a logarithm.
    shares = [
        (np.bincount(np.searchsorted(edges, each, side="right"), minlength=len(edges) + 1) + 0.5)
        / (len(each) + 0.5 * (len(edges) + 1))
        for each in (old, new)
    ]
    return float(np.sum((shares[1] - shares[0]) * np.log(shares[1] / shares[0])))


def read_scores(answer: bytes) -> tuple[list[float], list[Any] | None]:
    """Scores of an answer in JSON, and what its ranking is of, best first; no scores where it has none."""
    try:
        found = json.loads(answer)
        if "predictions" in found:
            scores = [float(each) for each in found["predictions"]]
            best = sorted(range(len(scores)), key=lambda i: -scores[i])
            return scores, best if len(best) > _TOP else None
        if "ranking" in found:
            return [float(each["score"]) for each in found["ranking"]], [
                each["index"] for each in found["ranking"]
            ]
        return ([float(found["score"])] if "score" in found else []), None
    except (ValueError, TypeError, KeyError):
        return [], None


def kept_of_top(pairs: Sequence[tuple[list[Any] | None, list[Any] | None]]) -> float | None:
    """Share of the old version's top 10 that is in the new one's, over all rankings; None without any."""
    kept = wanted = 0
    for old, new in pairs:
        if old and new:
            first = set(old[:_TOP])
            wanted += len(first)
            kept += len(first & set(new[:_TOP]))
    return kept / wanted if wanted else None

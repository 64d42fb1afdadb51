"""The model beside the baseline: how far apart they are, whether that is more than chance, and what follows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from dlrm_factory.tools.evaluation.results import Comparison, ModelResult
from dlrm_factory.tools.metrics.metrics import AucDifference, compare_aucs

__all__ = ["compare"]

_NOTABLE = 0.001  # of AUC: a significant difference below it is too small to pay for much


def compare(
    labels: npt.NDArray[np.uint8],
    model: npt.NDArray[np.float32],
    baseline: npt.NDArray[np.float32],
    results: Sequence[ModelResult],
) -> Comparison:
    """``model``'s logits against ``baseline``'s, float32 [N] each; ``results``: of the two, for their names."""
    found = compare_aucs(labels, model, baseline)
    one, other = results[0].name, results[1].name
    return Comparison(
        baseline=other,
        difference=found,
        judgement=_judgement(one, other, found) if found else _undefined(one, other),
    )


def _judgement(one: str, other: str, found: AucDifference) -> str:
    interval = f"95% interval of {one} less {other}: {found.low:+.4f} to {found.high:+.4f}"
    size = f"{abs(found.difference):.4f} AUC ({interval})"
    if not found.is_significant:
        return (
            f"These samples do not show that {one} ranks better or worse than {other}: they differ by {size}. "
            f"{other} is the simpler model."
        )
    better, worse = (one, other) if found.difference > 0 else (other, one)
    if abs(found.difference) < _NOTABLE:
        return (
            f"{better} ranks better than {worse} by {size}: more than chance, but little. "
            f"{other} is the simpler model."
        )
    if better == one:
        return f"{one} ranks better than {other} by {size}."
    return f"{other}, the simpler model, ranks better than {one} by {size}: serve it, or train {one} better first."


def _undefined(one: str, other: str) -> str:
    return f"There are fewer than 2 clicks or fewer than 2 non-clicks, so {one} and {other} cannot be compared by AUC."

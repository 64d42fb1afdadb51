"""Passes by the number of rows, and when they stop: lines of a drafted ``training:``."""

from __future__ import annotations

__all__ = ["passes"]

_FEW, _MANY, _VERY_MANY = 2_000, 1_000_000, 10_000_000


def passes(rows: int) -> list[str]:
    """Batch size, epochs, decay of the learning rates and early stopping for ``rows`` rows, each a line of YAML.

    Few rows are seen several times, until a validation part says that it is enough; then the model is trained anew on
    all of them. Of many rows that part is small, so that leaving it out costs nothing. Very many teach all in one pass.
    """
    batch = 64 if rows < 10_000 else 256 if rows < 50_000 else 512 if rows < _MANY else 4096
    if rows < _FEW:
        return [
            f"batch_size: {batch}",
            "epochs: 5  # too few rows for early stopping: the validation part would say little",
            "learning_rate_decay: linear",
        ]
    if rows < _MANY:
        epochs, patience = (30, 3) if rows < 10_000 else (20, 3) if rows < 50_000 else (6, 2)
        return [
            f"batch_size: {batch}",
            f"epochs: {epochs}  # at most: training stops when {patience} in a row are no better on the validation",
            "# part, a tenth of the rows that are not held out; then it begins anew with all of them, for as long",
            f"early_stopping: {patience}",
            "validation: 0.1",
            "refit: true",
            "learning_rate_decay: linear",
        ]
    if rows < _VERY_MANY:
        return [
            f"batch_size: {batch}",
            "epochs: 3  # at most: training stops when an epoch is no better on the validation part",
            "early_stopping: 1",
            "validation: 0.02",
            "learning_rate_decay: linear",
        ]
    return [
        f"batch_size: {batch}",
        "epochs: 1  # so many rows teach in one pass; `dlrm train` says if more would likely help",
        f"evaluate_every: {max(rows // batch // 10, 1)}",
        "learning_rate_decay: linear",
    ]

"""Figures of labels that came later: calibration and normalized entropy, kept beside the workers' files."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import msgspec
from filelock import FileLock

__all__ = ["LABELS", "LabelFigures", "read_figures", "write_figures"]

_FILE = "labels.json"

JOINED = "dlrm_labels_joined"
MEAN_LABEL = "dlrm_labels_mean"
CALIBRATION = "dlrm_calibration_ratio"
ENTROPY = "dlrm_normalized_entropy_ratio"
JOINED_AT = "dlrm_labels_timestamp_seconds"

LABELS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    JOINED: ("Labels of the latest `dlrm labels` that were joined with a score.", ()),
    MEAN_LABEL: ("Average label of these.", ()),
    CALIBRATION: ("Average prediction over average label of these; 1 is calibrated.", ()),
    ENTROPY: (
        "Log loss of these over the entropy of their average label; below 1 is better than the average.",
        (),
    ),
    JOINED_AT: ("Time of the latest `dlrm labels`, in seconds since the epoch.", ()),
}


class LabelFigures(msgspec.Struct, frozen=True, kw_only=True):
    """Labels of one run of `dlrm labels` and what the model had predicted.

    Fields:
        joined: labels with a score.
        label_sum, score_sum, log_loss_sum: over these; log loss in nats.
        when: seconds since the epoch.
    """

    joined: int
    label_sum: float
    score_sum: float
    log_loss_sum: float
    when: float

    @property
    def calibration(self) -> float | None:
        """Average prediction over average label; None without a positive label."""
        return self.score_sum / self.label_sum if self.label_sum else None

    @property
    def normalized_entropy(self) -> float | None:
        """Log loss over the entropy of the average label (He et al., ADKDD 2014); None if all labels are equal."""
        mean = self.label_sum / self.joined if self.joined else 0.0
        if not 0 < mean < 1:
            return None
        entropy = -(mean * math.log(mean) + (1 - mean) * math.log(1 - mean))
        return self.log_loss_sum / self.joined / entropy

    def gauges(self) -> dict[str, float]:
        """Values by the names of `LABELS`; undefined ones are left out."""
        found = {
            JOINED: float(self.joined),
            MEAN_LABEL: self.label_sum / self.joined if self.joined else None,
            CALIBRATION: self.calibration,
            ENTROPY: self.normalized_entropy,
            JOINED_AT: self.when,
        }
        return {name: value for name, value in found.items() if value is not None}


def read_figures(folder: Path) -> LabelFigures | None:
    """Figures of the latest join for the workers whose files lie in ``folder``; None if there was none."""
    try:
        return msgspec.json.decode((folder / _FILE).read_bytes(), type=LabelFigures)
    except (OSError, msgspec.MsgspecError):
        return None


def write_figures(folder: Path, figures: LabelFigures) -> None:
    """Keep ``figures`` in ``folder`` in place of earlier ones."""
    with FileLock(folder / f"{_FILE}.lock"):
        partial = folder / f"{_FILE}.partial"
        partial.write_bytes(msgspec.json.encode(figures))
        partial.replace(folder / _FILE)

"""Trials of a search, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dlrm_factory.tools.tuning.space import Settings

__all__ = ["TuningReport", "TuningTrial"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TuningTrial:
    """One run with some settings.

    Fields:
        number: from 0, in the order of their start.
        state: ``complete``; ``pruned``, given up as others were better by then; ``unfinished`` when time was up, to be
            tried again; ``failed``, by ``error``.
        validation_auc: the best of the run; of a pruned one the last. None if there was no evaluation.
        epochs: after which it was best; None if it is not complete.
        seconds: from begin to end.
    """

    number: int
    settings: Settings
    state: Literal["complete", "pruned", "unfinished", "failed"]
    validation_auc: float | None
    epochs: float | None
    seconds: float
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TuningReport:
    """A search so far, with what earlier calls found in the same study.

    Fields:
        trials: in the order of their start.
        declared: the trial of the declared settings; None if it is not complete.
        best: the one with the highest validation AUC.
        training_rows, validation_rows: samples.
        seconds: of this call.
        output: the declaration that was written, with the best settings.
    """

    trials: tuple[TuningTrial, ...]
    declared: TuningTrial | None
    best: TuningTrial
    training_rows: int
    validation_rows: int
    seconds: float
    output: Path

    def ranked(self) -> list[TuningTrial]:
        """Complete trials, the best first."""
        complete = [trial for trial in self.trials if trial.state == "complete"]
        return sorted(complete, key=lambda trial: -(trial.validation_auc or 0.0))

"""The evaluations of a run, in order: its learning curve."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

__all__ = ["Evaluation", "history_json", "read_history", "rising_sentence", "still_rising"]

_NOTABLE = 0.001  # of AUC
_TAIL = 0.25  # of the samples


class Evaluation(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Figures of the model after some steps, on the held-out rows and on the validation rows.

    Fields:
        step: optimiser steps taken.
        samples: training samples seen, all ranks together.
        training_loss: mean since the evaluation before, in nats; each batch before its own step.
        held_out_auc: None if the held-out labels are all alike.
        held_out_log_loss: in nats.
        validation_auc, validation_log_loss: the same of the validation rows; None if there are none.
        learning_rate: of the dense optimiser, in the latest step.
        seconds: of training until then; None where the history was read from a checkpoint.
    """

    step: int
    samples: int
    training_loss: float
    held_out_auc: float | None
    held_out_log_loss: float
    learning_rate: float
    validation_auc: float | None = None
    validation_log_loss: float | None = None
    seconds: float | None = None


def still_rising(history: Sequence[Evaluation]) -> float | None:
    """Return the rise of the AUC over the last quarter of the samples; None if it is not best there by more than 0.001.

    The AUC is that of the validation rows, if there are any. One evaluation alone says nothing.
    """
    if len(history) < 2:
        return None
    validates = history[-1].validation_auc is not None
    areas = [(e.validation_auc if validates else e.held_out_auc) or 0.0 for e in history]
    tail = (1 - _TAIL) * history[-1].samples
    before = max(i for i, e in enumerate(history[:-1]) if e.samples <= tail or i == 0)
    gain = areas[-1] - areas[before]
    return gain if areas[-1] == max(areas) and gain > _NOTABLE else None


def rising_sentence(gain: float) -> str:
    """Advice where `still_rising` gave ``gain``."""
    return (
        f"The AUC was still rising when training ended, by {gain:.4f} over the last quarter of the samples: "
        "more epochs would likely help."
    )


def history_json(history: Sequence[Evaluation]) -> str:
    """A JSON list for a checkpoint's metadata: all but the seconds, which differ from run to run."""
    records = [msgspec.structs.asdict(evaluation) for evaluation in history]
    for record in records:
        del record["seconds"]
        if record["validation_auc"] is None and record["validation_log_loss"] is None:
            del record["validation_auc"], record["validation_log_loss"]
    return msgspec.json.encode(records).decode()


def read_history(text: str) -> list[Evaluation]:
    """Read what `history_json` wrote. msgspec.ValidationError if it is not that."""
    return msgspec.json.decode(text, type=list[Evaluation])

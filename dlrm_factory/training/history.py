"""The evaluations of a run, in order: its learning curve."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

__all__ = ["Evaluation", "history_json", "read_history"]


class Evaluation(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """What the model reached on the held-out rows after some steps.

    Fields:
        step: optimiser steps taken.
        samples: training samples seen, all ranks together.
        training_loss: mean since the evaluation before, in nats; each batch before its own step.
        held_out_auc: None if the held-out labels are all alike.
        held_out_log_loss: in nats.
        learning_rate: of the dense optimiser, in the latest step.
        seconds: of training until then; None where the history was read from a checkpoint.
    """

    step: int
    samples: int
    training_loss: float
    held_out_auc: float | None
    held_out_log_loss: float
    learning_rate: float
    seconds: float | None = None


def history_json(history: Sequence[Evaluation]) -> str:
    """A JSON list for a checkpoint's metadata: all but the seconds, which differ from run to run."""
    records = [msgspec.structs.asdict(evaluation) for evaluation in history]
    for record in records:
        del record["seconds"]
    return msgspec.json.encode(records).decode()


def read_history(text: str) -> list[Evaluation]:
    """What `history_json` wrote. msgspec.ValidationError if it is not that."""
    return msgspec.json.decode(text, type=list[Evaluation])

"""Served scores against trained ones: what quantised tables and compiled dense parts cost in quality."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from dlrm_factory.errors import WeightsError
from dlrm_factory.held_out import HeldOut, read_held_out
from dlrm_factory.metrics import auc, log_loss
from dlrm_factory.scorer import Scorer, probabilities
from dlrm_factory.weights import SealedWeights

__all__ = ["MAX_AUC_LOSS", "EngineDrift", "Verification", "verify_weights"]

MAX_AUC_LOSS = 0.0005


@dataclass(frozen=True, kw_only=True)
class EngineDrift:
    """How far one way of scoring is from the float model, over the held-out samples.

    Fields:
        engine: ``eager`` (the tables' dtypes alone) or ``compiled`` (the dense parts' precision too).
        auc, log_loss: what it reaches.
        auc_loss: the float model's AUC less this one's.
        mean_difference, max_difference: of a probability.
    """

    engine: str
    auc: float
    log_loss: float
    auc_loss: float
    mean_difference: float
    max_difference: float


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What `verify_weights` found.

    Fields:
        tables: tables whose every row was read and agrees with its checksum.
        samples: held-out samples compared; 0 if the weights carry none.
        float_auc, float_log_loss: of the model as it was trained; None without samples.
        engines: one for each way of scoring that this host has.
    """

    tables: int
    samples: int
    float_auc: float | None
    float_log_loss: float | None
    precision: str
    engines: tuple[EngineDrift, ...]

    def check(self, max_auc_loss: float) -> None:
        """WeightsError if any engine loses more AUC than ``max_auc_loss``."""
        for drift in self.engines:
            if drift.auc_loss > max_auc_loss:
                raise WeightsError(
                    f"{drift.engine} scoring loses {drift.auc_loss:.5f} AUC against the trained model "
                    f"({drift.auc:.5f} of {self.float_auc:.5f}), and at most {max_auc_loss:.5f} is allowed; "
                    "use a wider dtype for the tables, precision fp32, or allow more with --max-auc-loss"
                )


def verify_weights(folder: Path, *, build: bool = True) -> Verification:
    """Check the sealed weights in ``folder``: every table's checksum, and the scores of the held-out samples.

    ``build``: compile the dense parts if this host has not yet done so. WeightsError if a file is damaged.
    """
    sealed = SealedWeights(folder)
    sealed.tables.verify()
    # As a worker does: packages are compiled for a number of threads.
    torch.set_num_threads(sealed.declaration.serving.threads)
    scorer = Scorer.load(folder)
    held_out = read_held_out(folder)
    engines = [] if held_out is None else [_drift(scorer, held_out)]
    if held_out is not None and sealed.declaration.serving.compile != "off":
        scorer.compile(folder, build=build)
        if scorer.engine == "compiled":
            engines.append(_drift(scorer, held_out))
    return Verification(
        tables=len(sealed.tables.tables),
        samples=0 if held_out is None else len(held_out.batch),
        float_auc=None if held_out is None else auc(held_out.labels, held_out.logits),
        float_log_loss=None if held_out is None else log_loss(held_out.labels, held_out.logits),
        precision=scorer.precision,
        engines=tuple(engines),
    )


def _drift(scorer: Scorer, held_out: HeldOut) -> EngineDrift:
    logits = scorer.logits(held_out.batch)
    differences = np.abs(probabilities(logits) - probabilities(held_out.logits))
    reached = auc(held_out.labels, logits)
    return EngineDrift(
        engine=scorer.engine,
        auc=reached,
        log_loss=log_loss(held_out.labels, logits),
        auc_loss=auc(held_out.labels, held_out.logits) - reached,
        mean_difference=float(differences.mean()),
        max_difference=float(differences.max()),
    )

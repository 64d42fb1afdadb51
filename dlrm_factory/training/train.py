"""`train`: samples → split → model → epochs → evaluation → checkpoint."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch.distributed as dist

from dlrm_factory.checkpoint import save_checkpoint
from dlrm_factory.config.declaration import DLRMDeclaration
from dlrm_factory.errors import DataError, WeightsError
from dlrm_factory.features import Vocabularies
from dlrm_factory.held_out import MOST_SAMPLES, HeldOut
from dlrm_factory.metrics import auc, log_loss
from dlrm_factory.training.clicks import Clicks, generate_clicks, read_clicks
from dlrm_factory.training.dataset import ClickDataset, Int64
from dlrm_factory.training.loop import Observer, Progress, held_out_logits, train_epoch
from dlrm_factory.training.objective import Objective, make_objective
from dlrm_factory.training.split import split_rows

__all__ = ["TrainingReport", "train"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingReport:
    """What a training run reached.

    Fields:
        rows, training_rows, held_out_rows: samples.
        epochs: passes over the training rows.
        seconds: of the epochs alone, without reading, evaluation and saving.
        samples_per_second: in the epochs, all ranks together.
        training_loss: mean over the last epoch, in nats; each batch before its own step.
        held_out_log_loss: in nats.
        held_out_auc: area under the ROC curve; None if the held-out labels are all alike.
        best_log_loss, best_auc: what the ground truth itself reaches on the held-out rows, which no model can
            be expected to beat; None for real clicks.
    """

    rows: int
    training_rows: int
    held_out_rows: int
    epochs: int
    seconds: float
    samples_per_second: float
    training_loss: float
    held_out_log_loss: float
    held_out_auc: float | None
    best_log_loss: float | None
    best_auc: float | None

    def metadata(self) -> dict[str, str]:
        """What the checkpoint keeps: everything that is the same in a repeated run, as text."""
        figures = asdict(self)
        del figures["seconds"], figures["samples_per_second"]
        return {key: repr(value) for key, value in figures.items() if value is not None}


def train(
    declaration: DLRMDeclaration,
    *,
    output: Path,
    data: Sequence[Path] = (),
    rows: int | None = None,
    write_data: Path | None = None,
    observe: Observer = lambda progress: None,
) -> TrainingReport:
    """Train the declared model and save the checkpoint ``output``.

    Under torchrun every rank calls this; rank 0 saves.

    Args:
        declaration: the model; its ``training`` says how to train.
        output: the safetensors file to write, all or nothing.
        data: CSV and Parquet files; without any, clicks are generated from the ground truth.
        rows: of generated clicks; of files, the most rows to read. None: a fitting number, all rows.
        write_data: where to keep generated clicks, CSV or Parquet.
        observe: told of progress.

    Raises:
        DataError: the data cannot be read, does not match the declaration or is too little.
        ConfigError: training diverged.
        PlanError: the tables do not fit into memory.
        WeightsError: ``output`` cannot be written.
    """
    _check_writable(output)
    clicks = _clicks(declaration, data, rows, write_data, observe)
    training, held_out = _split(clicks.dataset, declaration)
    objective = make_objective(clicks.features.declaration)
    started = time.perf_counter()
    loss = _train_epochs(objective, clicks.dataset, training, observe)
    seconds = time.perf_counter() - started
    logits = held_out_logits(objective, clicks.dataset, held_out, observe=observe)
    labels = clicks.dataset.labels[held_out]
    truth = None if clicks.true_logits is None else clicks.true_logits[held_out]
    epochs = declaration.training.epochs
    report = TrainingReport(
        rows=len(clicks.dataset),
        training_rows=len(training),
        held_out_rows=len(held_out),
        epochs=epochs,
        seconds=seconds,
        samples_per_second=epochs * len(training) / seconds,
        training_loss=loss,
        held_out_log_loss=log_loss(labels, logits),
        held_out_auc=_auc(labels, logits),
        best_log_loss=None if truth is None else log_loss(labels, truth),
        best_auc=None if truth is None else _auc(labels, truth),
    )
    sample = slice(0, MOST_SAMPLES)
    kept = HeldOut(
        batch=clicks.dataset.features(held_out[sample]),
        labels=labels[sample].astype(np.uint8),
        logits=logits[sample],
    )
    _save(objective, output, report, clicks.features.vocabularies, kept)
    return report


def _clicks(
    declaration: DLRMDeclaration,
    data: Sequence[Path],
    rows: int | None,
    write_data: Path | None,
    observe: Observer,
) -> Clicks:
    observe(Progress(stage="data", done=0, total=rows))
    if not data:
        return generate_clicks(declaration, rows=rows, write_to=write_data, observe=observe)
    if write_data is not None:
        raise DataError("generated clicks can be written to a file, but with data files nothing is generated")
    return read_clicks(declaration, data, rows=rows, observe=observe)


def _check_writable(output: Path) -> None:
    """WeightsError now, rather than an hour later."""
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WeightsError(f"{output}: cannot be written: {error}") from None
    if output.is_dir() or not os.access(output.parent, os.W_OK):
        raise WeightsError(f"{output}: cannot be written; name a file in a folder that you may write to")


def _split(clicks: ClickDataset, declaration: DLRMDeclaration) -> tuple[Int64, Int64]:
    options = declaration.training
    training, held_out = split_rows(len(clicks), holdout=options.holdout, seed=options.seed)
    if not len(training) or not len(held_out):
        raise DataError(
            f"{len(clicks)} rows are too few: {len(training)} to train on and {len(held_out)} held out "
            f"(holdout {options.holdout}); add rows"
        )
    return training, held_out


def _train_epochs(objective: Objective, clicks: ClickDataset, rows: Int64, observe: Observer) -> float:
    """The mean training loss of the last epoch."""
    losses = [
        train_epoch(objective, clicks, rows, epoch=epoch, observe=observe)
        for epoch in range(objective.built.declaration.training.epochs)
    ]
    return losses[-1]


def _auc(labels: np.ndarray, logits: np.ndarray) -> float | None:
    area = auc(labels, logits)
    return None if np.isnan(area) else area


def _save(
    objective: Objective,
    output: Path,
    report: TrainingReport,
    vocabularies: Vocabularies | None,
    held_out: HeldOut,
) -> None:
    state = objective.built.state_dict()
    if dist.get_rank() == 0:
        save_checkpoint(
            output,
            objective.built.declaration,
            state,
            report.metadata(),
            vocabularies=vocabularies,
            held_out=held_out,
        )

"""`train`: samples → split → model → (snapshot →) steps and evaluations → report → checkpoint."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import torch.distributed as dist

from dlrm_factory.config.declaration import DLRMDeclaration
from dlrm_factory.errors import ConfigError, DataError, WeightsError
from dlrm_factory.tools.data.dataset import ClickDataset
from dlrm_factory.tools.data.files import FileFormat
from dlrm_factory.tools.data.golden_rows import golden_rows_json
from dlrm_factory.tools.data.labels import counts_for, label_codes
from dlrm_factory.tools.data.progress import Observer, Progress
from dlrm_factory.tools.data.source import Clicks, generate_clicks, read_clicks
from dlrm_factory.tools.training.early_stopping import check_labels_differ
from dlrm_factory.tools.training.loop import TrainingData, TrainingRun
from dlrm_factory.tools.training.objective import make_objective
from dlrm_factory.tools.training.report import SeedFigures, TrainingReport, make_report, seed_figures
from dlrm_factory.tools.training.run_state import RunState
from dlrm_factory.tools.training.snapshots import Snapshots
from dlrm_factory.weights.checkpoint import GOLDEN_ROWS, save_checkpoint
from dlrm_factory.weights.held_out import MAX_SAMPLES, HeldOut

__all__ = ["fit", "load_clicks", "train", "training_data", "with_pooling_factors"]


def train(
    declaration: DLRMDeclaration,
    *,
    output: Path,
    data: Sequence[Path] = (),
    held_out: Sequence[Path] = (),
    rows: int | None = None,
    scratch: Path | None = None,
    file_format: FileFormat = "auto",
    write_data: Path | None = None,
    checkpoint_dir: Path | None = None,
    checkpoint_every: int | None = None,
    resume: bool = False,
    seeds: int = 1,
    observe: Observer = lambda progress: None,
) -> TrainingReport:
    """Train the declared model and save the checkpoint ``output``.

    Under torchrun every rank calls this; rank 0 saves.

    Args:
        declaration: the model; its ``training`` says how to train.
        output: the safetensors file to write, all or nothing.
        data: CSV and Parquet files, or folders of them; without any, clicks are generated from the ground truth.
        held_out: such files with the rows to hold out; all of ``data`` trains then.
        rows: of generated clicks; of files, the most rows to read. None: a fitting number, all rows.
        scratch: a folder on disk for rows that are not to be in memory; None: only what memory cannot hold.
        file_format: of ``data`` and ``held_out``; see `dlrm_factory.tools.data.files`.
        write_data: where to keep generated clicks, CSV or Parquet.
        checkpoint_dir: a folder for snapshots, from which a run can go on; the newest two are kept.
        checkpoint_every: steps between snapshots; None: after each epoch.
        resume: go on from the newest whole snapshot in ``checkpoint_dir``, at any number of ranks.
        seeds: train so many times on the same rows, each with weights and an order of samples of its own, and report
            all; the checkpoint is of the first, the declared seed.
        observe: told of progress.

    Raises:
        DataError: the data cannot be read, does not match the declaration or is too little.
        ConfigError: training diverged, or the model has no probability to train.
        PlanError: the tables do not fit into memory.
        WeightsError: ``output`` or ``checkpoint_dir`` cannot be written, or there is nothing to go on from.
    """
    _check_writable(output)
    if not declaration.probabilities:
        raise ConfigError(["$.outputs: has no probability, so there is no label to train on; declare one"])
    if seeds > 1 and checkpoint_dir is not None:
        raise DataError(
            "several seeds are several runs, and snapshots are of one; leave seeds or checkpoint_dir out"
        )
    snapshots = _snapshots(checkpoint_dir, resume)
    clicks = load_clicks(declaration, data, held_out, rows, scratch, file_format, write_data, observe)
    golden_rows = golden_rows_json(clicks.features.declaration, [*held_out, *data], file_format)
    samples = training_data(clicks)
    fitted = clicks.features.declaration
    run, logits = fit(
        fitted, samples, snapshots=snapshots, save_every=checkpoint_every, resume=resume, observe=observe
    )
    report = make_report(run, logits, clicks.true_logits, clicks.bad_rows, clicks.unreadable)
    _save(run, output, report, clicks, _kept(clicks, logits), golden_rows)
    del run
    if seeds > 1:
        others = [_of_seed(fitted, samples, fitted.training.seed + i, observe) for i in range(1, seeds)]
        report = replace(report, seeds=(seed_figures(fitted.training.seed, report), *others))
    return report


def fit(
    declaration: DLRMDeclaration,
    samples: TrainingData,
    *,
    snapshots: Snapshots | None = None,
    save_every: int | None = None,
    resume: bool = False,
    observe: Observer = lambda progress: None,
) -> tuple[TrainingRun, npt.NDArray[np.float32]]:
    """Train a fresh model on ``samples``, and anew on the validation rows too if ``refit`` is declared.

    Collective over the ranks. ``declaration`` has every mean and std.

    Returns:
        The run, with the weights that are kept in its model, and their logits of the held-out rows, float32
        [rows, probabilities].
    """

    def start(state: RunState) -> TrainingRun:
        run = TrainingRun(make_objective(declaration), samples, observe=observe, save_every=save_every)
        run.state = state
        if snapshots is not None:
            run.save = snapshots.save
        return run

    run = start(RunState())
    if snapshots is not None and resume:
        snapshots.load(run)
    logits = run.train()
    if run.objective.options.refit and run.state.search is None:
        state = run.state_of_refit()
        del run  # its weights, their best copy and the optimisers' states
        run = start(state)
        logits = run.train()
    return run, logits


def _of_seed(
    declaration: DLRMDeclaration, samples: TrainingData, seed: int, observe: Observer
) -> SeedFigures:
    """Figures of a run on the same rows whose weights and order of samples come from ``seed``."""
    training = msgspec.structs.replace(declaration.training, seed=seed)
    run, logits = fit(msgspec.structs.replace(declaration, training=training), samples, observe=observe)
    return seed_figures(seed, make_report(run, logits, None))


def load_clicks(
    declaration: DLRMDeclaration,
    data: Sequence[Path],
    held_out: Sequence[Path],
    rows: int | None,
    scratch: Path | None,
    file_format: FileFormat,
    write_data: Path | None,
    observe: Observer,
) -> Clicks:
    """Rows of ``data`` and ``held_out``; without any, generated ones. The arguments are those of `train`."""
    observe(Progress(stage="data", done=0, total=rows))
    if not data:
        if held_out:
            raise DataError("--held-out is for data files; give --data too")
        return generate_clicks(declaration, rows=rows, write_to=write_data, observe=observe)
    if write_data is not None:
        raise DataError("generated clicks can be written to a file, but with data files nothing is generated")
    return read_clicks(
        declaration,
        data,
        held_out=held_out,
        rows=rows,
        scratch=scratch,
        file_format=file_format,
        observe=observe,
    )


def _check_writable(output: Path) -> None:
    """WeightsError now, rather than an hour later."""
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WeightsError(f"{output}: cannot be written: {error}") from None
    if output.is_dir() or not os.access(output.parent, os.W_OK):
        raise WeightsError(f"{output}: cannot be written; name a file in a folder that you may write to")


def _snapshots(folder: Path | None, resume: bool) -> Snapshots | None:
    if folder is None:
        if resume:
            raise WeightsError("there is nothing to go on from; name the folder of snapshots, checkpoint_dir")
        return None
    snapshots = Snapshots(folder)
    snapshots.prepare(resume=resume)
    return snapshots


def training_data(clicks: Clicks) -> TrainingData:
    """Rows of ``clicks`` by their use. DataError unless there is something to train on and something held out."""
    options, ranks = clicks.features.declaration.training, int(os.environ.get("WORLD_SIZE", "1"))
    training, held_out = clicks.training, clicks.held_out
    if len(training) < ranks or not len(held_out):
        raise DataError(
            f"{len(clicks.dataset)} rows are too few: {len(training)} to train on and {len(held_out)} held out "
            f"(holdout {options.holdout}{f', {ranks} ranks' if ranks > 1 else ''}); add rows"
        )
    if options.early_stopping is not None:
        labels = clicks.dataset.labels[clicks.validation]
        check_labels_differ(labels[counts_for(labels, 0), 0])
    return TrainingData(
        clicks=clicks.dataset, training=training, validation=clicks.validation, held_out=held_out
    )


def _kept(clicks: Clicks, logits: np.ndarray) -> HeldOut:
    """Held-out samples for the checkpoint, with the model's logits of them."""
    rows = clicks.held_out[:MAX_SAMPLES]
    return HeldOut(
        batch=clicks.dataset.features(rows),
        labels=label_codes(clicks.dataset.labels[rows]),
        logits=logits[: len(rows)],
        seen=clicks.held_out_seen,
    )


def with_pooling_factors(declaration: DLRMDeclaration, clicks: ClickDataset) -> DLRMDeclaration:
    """``declaration`` with the average bag length of each feature that does not declare it, where it is not 1."""
    features = []
    for feature, offsets in zip(declaration.sparse_features, clicks.offsets, strict=True):
        mean = round(int(offsets[-1]) / max(1, len(clicks)), 3)
        if feature.pooling_factor is None and mean not in (0, 1):
            feature = msgspec.structs.replace(feature, pooling_factor=mean)
        features.append(feature)
    return msgspec.structs.replace(declaration, sparse_features=features)


def _save(
    run: TrainingRun,
    output: Path,
    report: TrainingReport,
    clicks: Clicks,
    held_out: HeldOut,
    golden_rows: str,
) -> None:
    built = run.objective.built
    state = built.state_dict()
    if dist.get_rank() == 0:
        save_checkpoint(
            output,
            with_pooling_factors(built.declaration, clicks.dataset),
            state,
            {**report.metadata(), GOLDEN_ROWS: golden_rows},
            vocabularies=clicks.features.vocabularies,
            held_out=held_out,
            seen_ids=clicks.seen_ids,
        )

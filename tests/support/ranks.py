"""Trainings that tests run in two processes, and then hold against the same in one."""

from __future__ import annotations

from pathlib import Path

import torch

from dlrm_factory.config import DLRMDeclaration
from dlrm_factory.errors import DataError
from dlrm_factory.tools.training import Progress, TrainingReport, train


class Interrupted(Exception):
    """A run was broken off."""


def interrupted_at(step: int):
    """An observer that breaks the run off, on every rank, when ``step`` steps are reported."""

    def observe(progress: Progress) -> None:
        if progress.stage == "training" and (progress.step or 0) >= step:
            raise Interrupted

    return observe


def train_all(jobs: list[tuple[DLRMDeclaration, dict]]) -> list[TrainingReport | None]:
    """Each job's report; None if it was to be broken off, with ``break_off=step`` among its options."""
    torch.set_num_threads(1)
    reports: list[TrainingReport | None] = []
    for declaration, options in jobs:
        step = options.pop("break_off", None)
        if step is None:
            reports.append(train(declaration, **options))
            continue
        try:
            train(declaration, observe=interrupted_at(step), **options)
        except Interrupted:
            reports.append(None)
    return reports


def fail_on_rank_1(folder: Path) -> None:
    """One rank makes a mistake while the other waits for it."""
    import torch.distributed as dist

    from dlrm_factory.model.shard import process_group

    process_group("cpu")
    if dist.get_rank() == 1:
        raise DataError(f"{folder}: rank 1 cannot read it")
    dist.barrier()

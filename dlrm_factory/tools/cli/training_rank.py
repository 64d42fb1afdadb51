"""One rank's part of ``dlrm train``, in this process or in one of several."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlrm_factory.config import DLRMDeclaration
from dlrm_factory.tools.cli.quiet import quiet_libraries
from dlrm_factory.tools.cli.training_progress import training_progress

if TYPE_CHECKING:
    from dlrm_factory.tools.training import Progress, TrainingReport

__all__ = ["TrainingCall", "leads", "train_rank", "train_spawned_rank"]


@dataclass(frozen=True, kw_only=True)
class TrainingCall:
    """What to train and how, as it travels to the ranks.

    Fields:
        options: of `dlrm_factory.tools.training.train`.
        threads: torch threads of a rank; None for a fitting number.
        ranks_here: ranks that share this host's cores.
        tensorboard: where to write logs.
    """

    declaration: DLRMDeclaration
    options: dict[str, Any]
    threads: int | None
    ranks_here: int
    tensorboard: Path | None


def leads() -> bool:
    """This process is rank 0, or alone."""
    return int(os.environ.get("RANK", "0")) == 0


def train_rank(call: TrainingCall) -> TrainingReport:
    """Train on this process's rank; rank 0 draws the bar and writes the logs."""
    import torch

    from dlrm_factory.tools.training import train
    from dlrm_factory.tools.training.threads import fitting_threads

    cores = max(1, torch.get_num_threads() // call.ranks_here)
    torch.set_num_threads(call.threads or fitting_threads(call.declaration, cores))
    with _observers(call.tensorboard) as observe:
        return train(call.declaration, observe=observe, **call.options)


def train_spawned_rank(call: TrainingCall) -> TrainingReport:
    """`train_rank` in a process that has just begun."""
    quiet_libraries()
    if not leads():
        logging.getLogger("dlrm_factory").setLevel(logging.ERROR)  # rank 0 has said it
    return train_rank(call)


@contextmanager
def _observers(logs: Path | None) -> Iterator[Callable[[Progress], None]]:
    with ExitStack() as stack:
        observers = []
        if leads():
            observers.append(stack.enter_context(training_progress()))
            if logs is not None:
                from dlrm_factory.tools.training.tensorboard import tensorboard

                observers.append(stack.enter_context(tensorboard(logs)))

        def observe(progress: Progress) -> None:
            for each in observers:
                each(progress)

        yield observe

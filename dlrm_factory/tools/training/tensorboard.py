"""TensorBoard logs of a run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dlrm_factory.errors import StackError, WeightsError
from dlrm_factory.tools.data.progress import Observer, Progress

__all__ = ["tensorboard"]


@contextmanager
def tensorboard(folder: Path) -> Iterator[Observer]:
    """Yields an observer that writes what it is told as scalars against the step, to an event file in ``folder``.

    ``training/loss``, ``training/samples_per_second``, ``learning_rate/dense``, ``learning_rate/tables`` while a run
    trains; ``held_out/auc``, ``held_out/log_loss``, ``training/mean_loss`` at its evaluations, and ``validation/auc``,
    ``validation/log_loss`` if there is a validation part.

    StackError without the package tensorboard; WeightsError if ``folder`` cannot be written.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise StackError(
            "--tensorboard needs the package tensorboard; install it with "
            "`pip install 'torchserve-dlrm[tensorboard]'`, or leave the option out"
        ) from None
    try:
        writer = SummaryWriter(str(folder))
    except OSError as error:
        raise WeightsError(f"{folder}: cannot be written: {error}") from None
    try:

        def observe(progress: Progress) -> None:
            for name, value in _scalars(progress).items():
                writer.add_scalar(name, value, _step(progress))

        yield observe
    finally:
        writer.close()


def _step(progress: Progress) -> int | None:
    return progress.step if progress.evaluation is None else progress.evaluation.step


def _scalars(progress: Progress) -> dict[str, float]:
    found: dict[str, float | None] = {}
    if progress.evaluation is not None:
        found["held_out/auc"] = progress.evaluation.held_out_auc
        found["held_out/log_loss"] = progress.evaluation.held_out_log_loss
        found["validation/auc"] = progress.evaluation.validation_auc
        found["validation/log_loss"] = progress.evaluation.validation_log_loss
        found["training/mean_loss"] = progress.evaluation.training_loss
    elif progress.stage in ("training", "refit"):
        found["training/loss"] = progress.loss
        found["training/samples_per_second"] = progress.samples_per_second
        if progress.learning_rates is not None:
            found["learning_rate/dense"], found["learning_rate/tables"] = progress.learning_rates
    return {name: value for name, value in found.items() if value is not None}

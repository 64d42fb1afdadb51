"""The training loop, over rows of a `ClickDataset`."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch.distributed as dist

from dlrm_factory.errors import ConfigError
from dlrm_factory.metrics import auc, log_loss
from dlrm_factory.training.clock import Clock
from dlrm_factory.training.dataset import ClickDataset, Int64
from dlrm_factory.training.early_stopping import EarlyStopping
from dlrm_factory.training.evaluation import held_out_logits
from dlrm_factory.training.history import Evaluation
from dlrm_factory.training.losses import Losses
from dlrm_factory.training.objective import Objective
from dlrm_factory.training.progress import Observer, Progress
from dlrm_factory.training.rank_slices import rank_slices
from dlrm_factory.training.run_state import RunState
from dlrm_factory.training.schedule import Schedule
from dlrm_factory.training.steps import make_steps

__all__ = ["Observer", "Progress", "TrainingData", "TrainingRun"]

_REPORT_STEPS = 20  # reading the loss waits for the device


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingData:
    """Encoded clicks, and the numbers of the rows to train on and to evaluate on, int64."""

    clicks: ClickDataset
    training: Int64
    held_out: Int64


class TrainingRun:
    """A run on this rank; every rank makes the same calls.

    Fields:
        state: where it is; set it before `train` to go on from there.
        save: called every ``save_every`` steps, or after each epoch if that is None, and at the end.
        early_stopping: None if it is not declared.
    """

    def __init__(
        self,
        objective: Objective,
        data: TrainingData,
        *,
        observe: Observer = lambda progress: None,
        save_every: int | None = None,
    ) -> None:
        self.objective, self.data = objective, data
        self.state = RunState()
        options = self._options = objective.options
        patience = options.early_stopping
        self.early_stopping = None if patience is None else EarlyStopping(objective, patience)
        self.save: Callable[[], None] = lambda: None
        self._observe, self._save_every = observe, save_every
        self._steps = make_steps(objective)
        self._losses = Losses()
        self._logits: npt.NDArray[np.float32] | None = None
        self._schedule = Schedule(
            options=options,
            samples=options.epochs * len(data.training),
            step_samples=options.batch_size * dist.get_world_size(),
        )

    @property
    def finished(self) -> bool:
        """No step is left to be taken."""
        return self.state.stopped or self.state.epoch >= self._options.epochs

    @property
    def samples(self) -> int:
        """Training rows used up in all epochs, by all ranks."""
        return self.state.epoch * len(self.data.training) + self.state.row

    def train(self) -> npt.NDArray[np.float32]:
        """All steps that are left, with the evaluations between them.

        Leaves the weights to be kept in the model. Returns their logits of the held-out rows, float32. ConfigError if
        the loss is no number any more.
        """
        with warnings.catch_warnings():
            # Its gradients are right: tests hold them against TorchRec's plain model's.
            warnings.filterwarnings("ignore", message="fbgemm::dense_embedding_codegen_lookup_function")
            while not self.finished:
                self._train_epoch()
        if self.early_stopping is not None and self.early_stopping.logits is not None:
            self.early_stopping.weights.restore()
            return self.early_stopping.logits
        if self._logits is None:  # the run was over when it was taken up again
            self._logits = self._held_out_logits()
        return self._logits

    def _train_epoch(self) -> None:
        """What is left of the epoch: the rows of its order from ``state.row`` on."""
        state, options = self.state, self._options
        if state.row == 0:
            state.epoch_loss = type(state.epoch_loss)()
        order = self.data.clicks.epoch_order(self.data.training, seed=options.seed, epoch=state.epoch)[
            state.row :
        ]
        pieces = list(rank_slices(order, options.batch_size))
        self._steps.begin(self.data.clicks, (mine for mine, _ in pieces))
        clock = Clock(self.samples)
        for i, (mine, everyone) in enumerate(pieces, start=1):
            self.objective.optimizers.set_rates(self._schedule.factor(step=state.step + 1, seen=self.samples))
            self._losses.add(self._steps.next(), len(mine))
            state.step += 1
            state.row += everyone
            if ends := i == len(pieces):
                state.epoch, state.row = state.epoch + 1, 0
            evaluates, saves = self._evaluates(ends), self._saves(ends)
            if ends or evaluates or saves or state.step % _REPORT_STEPS == 0:
                self._report(clock)
            if ends or evaluates or saves:
                state.seconds += clock.seconds()
                if evaluates:
                    self._evaluate()
                if saves or state.stopped:
                    self.save()
                clock.restart()
            if state.stopped:
                return
        if not pieces:  # fewer rows are left than there are ranks
            state.epoch, state.row = state.epoch + 1, 0

    def _evaluates(self, epoch_ends: bool) -> bool:
        every = self._options.evaluate_every
        return self.finished or (epoch_ends if every is None else self.state.step % every == 0)

    def _saves(self, epoch_ends: bool) -> bool:
        every = self._save_every
        return self.finished or (epoch_ends if every is None else self.state.step % every == 0)

    def _report(self, clock: Clock) -> None:
        loss = _checked(self._losses.pour_into(self.state.epoch_loss, self.state.recent_loss))
        self._observe(
            Progress(
                stage="training",
                done=self.samples,
                total=self._options.epochs * len(self.data.training),
                loss=loss,
                step=self.state.step,
                learning_rates=self.objective.optimizers.rates,
                samples_per_second=clock.speed(self.samples),
            )
        )

    def _evaluate(self) -> None:
        state, labels = self.state, self.data.clicks.labels[self.data.held_out]
        self._logits = self._held_out_logits()
        area = auc(labels, self._logits)
        evaluation = Evaluation(
            step=state.step,
            samples=self.samples,
            training_loss=state.recent_loss.over_ranks().mean,
            held_out_auc=None if math.isnan(area) else area,
            held_out_log_loss=log_loss(labels, self._logits),
            learning_rate=self.objective.optimizers.rates[0],
            seconds=state.seconds,
        )
        state.recent_loss = type(state.recent_loss)()
        state.history.append(evaluation)
        if self.early_stopping is not None:
            self.early_stopping.judge(state, evaluation, self._logits)
        total = len(labels)
        self._observe(Progress(stage="evaluation", done=total, total=total, evaluation=evaluation))

    def _held_out_logits(self) -> npt.NDArray[np.float32]:
        self._steps.pause()
        return held_out_logits(self.objective, self.data.clicks, self.data.held_out, observe=self._observe)


def _checked(loss: float) -> float:
    if not math.isfinite(loss):
        raise ConfigError(
            [
                f"$.training.learning_rate: the training loss became {loss}; lower learning_rate or "
                "sparse_learning_rate, or use transform: log1p for dense features with large values"
            ]
        )
    return loss

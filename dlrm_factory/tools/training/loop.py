"""Training loop over rows of a `ClickDataset`: learning rates, each rank's rows, steps, evaluations, snapshots."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch.distributed as dist

from dlrm_factory.config.options import TrainingOptions
from dlrm_factory.errors import ConfigError, DataError, RequestError
from dlrm_factory.tools.data.dataset import ClickDataset, Int64, slices
from dlrm_factory.tools.data.labels import counts_for
from dlrm_factory.tools.data.progress import Observer, Progress
from dlrm_factory.tools.metrics.history import Evaluation
from dlrm_factory.tools.metrics.metrics import auc, log_loss
from dlrm_factory.tools.training.early_stopping import EarlyStopping
from dlrm_factory.tools.training.objective import Objective, logits_of, make_steps
from dlrm_factory.tools.training.run_state import Clock, Losses, RunState, Search

__all__ = ["Observer", "Progress", "Schedule", "TrainingData", "TrainingRun", "rank_slices"]

_REPORT_STEPS = 20  # reading the loss waits for the device


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """Factor of both declared learning rates in each step.

    Warm-up goes by steps: step s of W gets s / W. Decay goes by samples, so that it keeps its course when a run goes on
    with another number of ranks: linear gives 1 - p and cosine (1 + cos(πp)) / 2, where p is the share of the samples
    after warm-up that were seen before the step. So the last step's rate is near 0, not 0.

    Fields:
        samples: of the whole run, all epochs and ranks.
        step_samples: of a step, all ranks together.
    """

    options: TrainingOptions
    samples: int
    step_samples: int

    def factor(self, *, step: int, seen: int) -> float:
        """Factor for the step numbered ``step`` (from 1), before which ``seen`` samples were trained on."""
        warmup = self.options.warmup_steps
        if step <= warmup:
            return step / warmup
        first = warmup * self.step_samples
        p = min(max((seen - first) / max(self.samples - first, 1), 0.0), 1.0)
        if self.options.learning_rate_decay == "linear":
            return 1.0 - p
        if self.options.learning_rate_decay == "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * p))
        return 1.0


def rank_slices(order: Int64, batch_size: int) -> Iterator[tuple[Int64, int]]:
    """Each step's rows of this rank, and the number of rows that all ranks train on.

    TorchRec's float tables need batches of one size on all ranks, so up to ranks - 1 rows at the end of ``order``
    are left out.
    """
    rank, ranks = dist.get_rank(), dist.get_world_size()
    for rows in slices(order, batch_size * ranks):
        share = len(rows) // ranks
        if share:
            yield rows[rank * share : (rank + 1) * share], share * ranks


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingData:
    """Encoded clicks, and the numbers of the rows to train on, to go by, and to evaluate on, int64.

    Fields:
        validation: what early stopping goes by; may be empty without it.
    """

    clicks: ClickDataset
    training: Int64
    validation: Int64
    held_out: Int64


class TrainingRun:
    """A run on this rank; every rank makes the same calls.

    Fields:
        state: where it is; set it before `train` to go on from there.
        save: called with the run every ``save_every`` steps, or after each epoch if that is None, and at the end.
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
        self.save: Callable[[TrainingRun], None] = lambda run: None
        self._observe, self._save_every = observe, save_every
        self._steps = make_steps(objective)
        self._losses = Losses()
        self._logits: npt.NDArray[np.float32] | None = None

    @property
    def finished(self) -> bool:
        """True if no step is left to be taken."""
        state = self.state
        over = state.search is not None and self.samples >= self._goal(state.search)
        return state.stopped or over or state.epoch >= self._options.epochs

    @property
    def samples(self) -> int:
        """Samples trained on in all epochs, by all ranks."""
        return self.state.epoch * self.epoch_samples + self.state.row

    @property
    def epoch_samples(self) -> int:
        """Samples that an epoch trains on: all rows but those left out, as each rank takes equally many."""
        rows = len(self.data.training) + (0 if self.state.search is None else len(self.data.validation))
        return rows - rows % dist.get_world_size()

    def _goal(self, search: Search) -> int:
        """Samples after which training anew is over."""
        return round(search.passes * self.epoch_samples)

    def state_of_refit(self) -> RunState:
        """The state that a run on the validation rows too begins with, to train anew for as long as this one was best.

        This one is over. The rates take the same course until then.
        """
        best = self.state.best()
        assert best is not None
        search = Search(
            passes=best.samples / self.epoch_samples,
            samples=self.samples,
            steps=self.state.step,
            stopped=self.state.stopped and self.state.epoch < self._options.epochs,
            history=self.state.history,
        )
        return RunState(seconds=self.state.seconds, search=search)

    def train(self) -> npt.NDArray[np.float32]:
        """Take all steps that are left, with the evaluations between them.

        Leaves the weights to be kept in the model. Returns their logits of the held-out rows, float32
        [rows, probabilities]. ConfigError if the loss is no number any more, DataError for a row that the user's own
        module refuses.
        """
        with warnings.catch_warnings():
            # Its gradients are right: tests hold them against TorchRec's plain model's.
            warnings.filterwarnings("ignore", message="fbgemm::dense_embedding_codegen_lookup_function")
            try:
                while not self.finished:
                    self._train_epoch()
            except RequestError as error:
                raise DataError(f"the module refuses a row of the data: {error}") from error
        if self.early_stopping is not None and self.early_stopping.logits is not None:
            self.early_stopping.weights.restore()
            return self.early_stopping.logits
        if self._logits is None:  # the run was over when it was taken up again
            self._logits = self._held_out_logits()
        return self._logits

    def _train_epoch(self) -> None:
        """Train on the rest of the epoch: the rows of its order from ``state.row`` on."""
        state, options = self.state, self._options
        if state.row == 0:
            state.epoch_loss = type(state.epoch_loss)()
        rows = self.data.training
        if state.search is not None:
            rows = np.sort(np.concatenate([rows, self.data.validation]))
        order = self.data.clicks.epoch_order(rows, seed=options.seed, epoch=state.epoch)[state.row :]
        schedule = Schedule(
            options=options,
            samples=options.epochs * len(rows),
            step_samples=options.batch_size * dist.get_world_size(),
        )
        pieces = list(rank_slices(order, options.batch_size))
        self._steps.begin(self.data.clicks, (mine for mine, _ in pieces))
        clock = Clock(self.samples)
        for i, (mine, everyone) in enumerate(pieces, start=1):
            self.objective.optimizers.set_rates(schedule.factor(step=state.step + 1, seen=self.samples))
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
                    self.save(self)
                clock.restart()
            if self.finished:
                return
        if not pieces:  # fewer rows are left than there are ranks
            state.epoch, state.row = state.epoch + 1, 0

    def _evaluates(self, epoch_ends: bool) -> bool:
        every = self._options.evaluate_every
        if self.state.search is not None:  # there is nothing left to find out
            return self.finished
        return self.finished or (epoch_ends if every is None else self.state.step % every == 0)

    def _saves(self, epoch_ends: bool) -> bool:
        every = self._save_every
        return self.finished or (epoch_ends if every is None else self.state.step % every == 0)

    def _report(self, clock: Clock) -> None:
        loss = self._checked(self._losses.add_to(self.state.epoch_loss, self.state.recent_loss))
        search = self.state.search
        self._observe(
            Progress(
                stage="training" if search is None else "refit",
                done=self.samples,
                total=self._options.epochs * self.epoch_samples if search is None else self._goal(search),
                loss=loss,
                step=self.state.all_steps,
                learning_rates=self.objective.optimizers.rates,
                samples_per_second=clock.speed(self.samples),
            )
        )

    def _checked(self, loss: float) -> float:
        if not math.isfinite(loss):
            module = self.objective.built.declaration.module
            also = "" if module is None else f", or see what {module.file} divides by, or takes the log of"
            raise ConfigError(
                [
                    f"$.training.learning_rate: the training loss became {loss}; lower learning_rate or "
                    f"sparse_learning_rate, or use transform: log1p for dense features with large values{also}"
                ]
            )
        return loss

    def _evaluate(self) -> None:
        state, data = self.state, self.data
        self._logits = self._held_out_logits()
        held_out = _Judged.of(data.clicks.labels[data.held_out], self._logits)
        validates = len(data.validation) > 0 and state.search is None
        validation = (
            _Judged.of(data.clicks.labels[data.validation], self._logits_of(data.validation))
            if validates
            else None
        )
        evaluation = Evaluation(
            step=state.step,
            samples=self.samples,
            training_loss=state.recent_loss.over_ranks().mean,
            held_out_auc=held_out.auc,
            held_out_log_loss=held_out.log_loss,
            validation_auc=None if validation is None else validation.auc,
            validation_log_loss=None if validation is None else validation.log_loss,
            learning_rate=self.objective.optimizers.rates[0],
            seconds=state.seconds,
        )
        state.recent_loss = type(state.recent_loss)()
        state.history.append(evaluation)
        if self.early_stopping is not None and state.search is None:
            self.early_stopping.update(state, evaluation, self._logits)
        total = len(data.held_out)
        self._observe(Progress(stage="evaluation", done=total, total=total, evaluation=evaluation))

    def _held_out_logits(self) -> npt.NDArray[np.float32]:
        return self._logits_of(self.data.held_out)

    def _logits_of(self, rows: Int64) -> npt.NDArray[np.float32]:
        self._steps.pause()
        return logits_of(self.objective, self.data.clicks, rows, observe=self._observe)


@dataclass(frozen=True, slots=True)
class _Judged:
    """Figures of the first probability, on the rows that count for it. ``auc``: None if their labels are all alike."""

    auc: float | None
    log_loss: float

    @classmethod
    def of(cls, labels: npt.NDArray[np.float32], logits: npt.NDArray[np.float32]) -> _Judged:
        """``labels`` and ``logits``: [rows, probabilities]."""
        rows = counts_for(labels, 0)
        own, scores = labels[rows, 0], logits[rows, 0]
        area = auc(own, scores)
        return cls(None if math.isnan(area) else area, log_loss(own, scores))

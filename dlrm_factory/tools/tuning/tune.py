"""`tune`: samples → trial after trial on the validation part → the declaration that did best."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from dlrm_factory.config import DLRMDeclaration, dump_declaration
from dlrm_factory.errors import ConfigError, DataError, PlanError, WeightsError
from dlrm_factory.tools.data.files import FileFormat
from dlrm_factory.tools.data.progress import Observer, Progress
from dlrm_factory.tools.training.loop import TrainingData
from dlrm_factory.tools.training.train import fit, load_clicks, training_data
from dlrm_factory.tools.tuning.results import TuningReport, TuningTrial
from dlrm_factory.tools.tuning.space import Settings, Space, prepared
from dlrm_factory.tools.tuning.study import check_optuna, open_study, trial_of, trials_of

if TYPE_CHECKING:
    from optuna import Study, Trial

__all__ = ["tune"]


class _TimeIsUpError(Exception):
    """Ends a trial that is not over in time."""


class _PrunedError(Exception):
    """Ends a trial that others beat."""


def tune(
    declaration: DLRMDeclaration,
    *,
    output: Path,
    seconds: float,
    study: Path | None = None,
    trials: int | None = None,
    data: Sequence[Path] = (),
    held_out: Sequence[Path] = (),
    rows: int | None = None,
    scratch: Path | None = None,
    file_format: FileFormat = "auto",
    observe: Observer = lambda progress: None,
    tell: Callable[[TuningTrial], None] = lambda trial: None,
) -> TuningReport:
    """Search for settings of the highest AUC on the validation part, and write the declaration with them.

    Each trial trains a model on the same rows, with early stopping. The first has the declared settings, the others
    those that Optuna's TPE sampler proposes; one that is behind most others is pruned. Held-out rows decide nothing.

    Args:
        declaration: the model; without early stopping it gets some, a validation part and ``refit``.
        output: the YAML file to write.
        seconds: for reading and all trials; what is not over by then is given up, and tried again by the next call.
        study: the file of the trials; one that is there goes on. None: beside ``output``, with the suffix ``.study``.
        trials: the most that begin in this call; None: as many as there is time for.
        data, held_out, rows, scratch, file_format: as for `dlrm_factory.train`.
        observe: told of the progress of reading and of each trial.
        tell: told of each trial that is over.

    Raises:
        StackError: Optuna is not installed.
        DataError: the data cannot be read or is too little; the study is of other data or another declaration; no trial
            was over in time.
        WeightsError: ``output`` or ``study`` cannot be written.
    """
    started = time.monotonic()
    check_optuna()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise DataError("tuning runs in one process; start it without torchrun")
    path = output.with_name(f"{output.name}.study") if study is None else study
    if path == output:
        raise WeightsError(f"{path}: is the declaration to be written; name another file for the study")
    base = prepared(declaration)
    clicks = load_clicks(base, data, held_out, rows, scratch, file_format, None, observe)
    samples = training_data(clicks)
    with open_study(path, base, samples) as opened:
        search = _Search(opened, clicks.features.declaration, samples, started + seconds, observe)
        begun = 0
        while time.monotonic() < search.deadline and (trials is None or begun < trials):
            tell(search.run_next())
            begun += 1
        found = trials_of(opened)
    complete = [trial for trial in found if trial.state == "complete"]
    if not complete:
        raise DataError(
            f"no trial was over within {seconds:.0f} seconds; give more time, fewer rows or fewer epochs"
            + "".join(f"\n  trial {trial.number}: {trial.error}" for trial in found if trial.error)
        )
    best = max(complete, key=lambda trial: trial.validation_auc or 0.0)
    declared = Settings.of(base)
    report = TuningReport(
        trials=found,
        declared=next((trial for trial in complete if trial.settings == declared), None),
        best=best,
        training_rows=len(samples.training),
        validation_rows=len(samples.validation),
        seconds=time.monotonic() - started,
        output=output,
    )
    _write(output, best.settings.applied_to(base), report)
    return report


class _Search:
    """Trials of a study, one after another."""

    def __init__(
        self,
        study: Study,
        declaration: DLRMDeclaration,
        samples: TrainingData,
        deadline: float,
        observe: Observer,
    ) -> None:
        """``declaration`` has every mean and std; ``deadline`` is of `time.monotonic`."""
        self.deadline = deadline
        self._study, self._samples, self._observe = study, samples, observe
        self._space = Space(declaration)
        once = msgspec.structs.replace(declaration.training, refit=False)
        self._declaration = msgspec.structs.replace(declaration, training=once)

    def run_next(self) -> TuningTrial:
        """Run one trial to its end, or to the end of the time."""
        from optuna.trial import TrialState

        trial = self._study.ask()
        settings = self._space.suggest(trial)
        try:
            auc, epochs = self._validated(trial, settings)
        except _PrunedError:
            self._study.tell(trial, state=TrialState.PRUNED)
        except (_TimeIsUpError, KeyboardInterrupt) as stopped:
            self._study.tell(trial, state=TrialState.FAIL)
            self._study.enqueue_trial(Space.parameters(settings))
            if isinstance(stopped, KeyboardInterrupt):
                raise
        except (ConfigError, PlanError) as error:  # it diverged, or its tables have no room
            trial.set_user_attr("error", str(error))
            self._study.tell(trial, state=TrialState.FAIL)
        else:
            trial.set_user_attr("epochs", epochs)
            self._study.tell(trial, auc)
        found = trial_of(self._study.trials[trial.number])
        assert found is not None
        return found

    def _validated(self, trial: Trial, settings: Settings) -> tuple[float, float]:
        """Best AUC on the validation rows, and the epochs until then."""

        def watch(progress: Progress) -> None:
            if time.monotonic() >= self.deadline:
                raise _TimeIsUpError
            evaluation = progress.evaluation
            if evaluation is not None and evaluation.validation_auc is not None:
                trial.report(evaluation.validation_auc, step=evaluation.samples)
                if trial.should_prune():
                    raise _PrunedError
            self._observe(progress)

        run, _ = fit(settings.applied_to(self._declaration), self._samples, observe=watch)
        best = run.state.best()
        assert best is not None
        assert best.validation_auc is not None
        return best.validation_auc, best.samples / len(self._samples.training)


def _write(output: Path, declaration: DLRMDeclaration, report: TuningReport) -> None:
    best, declared = report.best, report.declared
    before = "" if declared is None else f", as declared {declared.validation_auc:.4f}"
    head = (
        f"# Tuned: trial {best.number} of {len(report.trials)}, AUC {best.validation_auc:.4f} on "
        f"{report.validation_rows:,} validation rows{before}.\n"
    )
    partial = output.with_name(f"{output.name}.partial")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(head + dump_declaration(declaration), encoding="utf-8")
        partial.replace(output)
    except OSError as error:
        raise WeightsError(f"{output}: cannot be written: {error.strerror}") from None

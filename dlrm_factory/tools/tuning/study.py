"""Study in a file: Optuna's journal, lines of JSON, from which a search goes on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from dlrm_factory.config import DLRMDeclaration, dump_declaration
from dlrm_factory.errors import DataError, StackError, WeightsError
from dlrm_factory.tools.training.loop import TrainingData
from dlrm_factory.tools.training.snapshots import DataMarks
from dlrm_factory.tools.tuning.results import TuningTrial
from dlrm_factory.tools.tuning.space import Space

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

__all__ = ["check_optuna", "open_study", "trial_of", "trials_of"]

_NAME = "dlrm tune"
_STARTUP_TRIALS = 6  # before the sampler and the pruner learn from earlier ones


def check_optuna() -> None:
    """StackError if Optuna is not installed."""
    try:
        import optuna  # noqa: F401
    except ImportError as error:
        raise StackError(
            f"tuning needs Optuna, which is not usable here ({error}); "
            "install it with `pip install 'torchserve-dlrm[tune]'`"
        ) from None


@contextmanager
def open_study(path: Path, declaration: DLRMDeclaration, data: TrainingData) -> Iterator[Study]:
    """Yields the study in the file ``path``; a new one begins with the declared settings.

    One process at a time. Trials that an earlier one left unfinished are tried again, before new ones.

    Raises:
        DataError: it is a study of another declaration or of other data.
        WeightsError: ``path`` cannot be read or written, or another process has it.
    """
    import filelock
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.disable_default_handler()
    optuna.logging.enable_propagation()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(f"{path}.used", timeout=0):
            study = optuna.create_study(
                storage=JournalStorage(JournalFileBackend(str(path))),
                study_name=_NAME,
                direction="maximize",
                load_if_exists=True,
                pruner=optuna.pruners.MedianPruner(n_startup_trials=_STARTUP_TRIALS, n_min_trials=3),
            )
            # The same seed again would repeat the draws of the call before.
            seed = (declaration.training.seed + len(study.trials)) % 2**32
            study.sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=_STARTUP_TRIALS)
            _check_same(path, study, declaration, data)
            if not study.trials:
                study.enqueue_trial(Space.parameters(Space(declaration).declared))
            for trial in study.get_trials(states=[optuna.trial.TrialState.RUNNING]):
                study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
                study.enqueue_trial(trial.params)
            yield study
    except filelock.Timeout:
        raise WeightsError(
            f"{path}: another process goes on with this study; wait for it, or name another file"
        ) from None
    except (OSError, json.JSONDecodeError, KeyError) as error:
        raise WeightsError(f"{path}: cannot be used as a study: {error}; name another file") from None


def _check_same(path: Path, study: Study, declaration: DLRMDeclaration, data: TrainingData) -> None:
    marks = msgspec.to_builtins(DataMarks.of(data))
    here: dict[str, Any] = {"declaration": dump_declaration(declaration), "data": marks}
    known = study.user_attrs
    for what, value in here.items():
        if what not in known:
            study.set_user_attr(what, value)
        elif known[what] != value:
            which = "another declaration" if what == "declaration" else "other data"
            raise DataError(
                f"{path}: is a study of {which}; name another file, or remove this one to begin anew"
            )


def trial_of(trial: FrozenTrial) -> TuningTrial | None:
    """The trial as it is reported; None if it never began."""
    states: dict[str, Literal["complete", "pruned", "unfinished", "failed"]] = {
        "COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed" if "error" in trial.user_attrs else "unfinished",
    }  # fmt: skip
    settings = Space.settings(trial.params)
    if settings is None or trial.state.name not in states:
        return None
    found = trial.user_attrs
    return TuningTrial(
        number=trial.number,
        settings=settings,
        state=states[trial.state.name],
        validation_auc=trial.value,
        epochs=found.get("epochs"),
        seconds=0.0 if trial.duration is None else trial.duration.total_seconds(),
        error=found.get("error"),
    )


def trials_of(study: Study) -> tuple[TuningTrial, ...]:
    """All that began, in order."""
    return tuple(found for trial in study.trials if (found := trial_of(trial)) is not None)

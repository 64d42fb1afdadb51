"""An archive without a server: its files, its golden requests, and what serving costs in quality."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import msgspec
import numpy as np
import torch

from dlrm_factory.delong import compare_aucs
from dlrm_factory.errors import WeightsError
from dlrm_factory.goldens import Goldens, golden_batch, read_goldens
from dlrm_factory.held_out import HELD_OUT_FILE, HeldOut, read_held_out
from dlrm_factory.metrics import auc, log_loss
from dlrm_factory.scorer import EAGER_TOLERANCE, TOLERANCE, Scorer, probabilities
from dlrm_factory.weights import SealedWeights
from dlrm_factory.weights.seal import EngineFigures, Evaluation, installed_versions

__all__ = [
    "MAX_AUC_LOSS",
    "MAX_DRIFT",
    "EngineDrift",
    "GoldenFigures",
    "Replay",
    "Verification",
    "verify_weights",
]

MAX_AUC_LOSS = 0.0005
MAX_DRIFT = 0.02

# Asks a scorer golden requests as a server would; gives the largest difference of a probability. WeightsError if
# one is over the tolerance.
Replay = Callable[[Scorer, Goldens, float], float]


@dataclass(frozen=True, kw_only=True)
class EngineDrift:
    """How far one way of scoring is from the float model, over the held-out samples.

    Fields:
        engine: ``eager`` (the tables' dtypes alone) or ``compiled`` (the dense parts' precision too).
        auc, log_loss: what it reaches.
        auc_loss: the float model's AUC less this one's.
        auc_loss_is_chance: whether so few samples could show that loss of models that rank equally well (p at least
            0.05 by DeLong's test).
        mean_difference, max_difference: of a probability.
    """

    engine: str
    auc: float
    log_loss: float
    auc_loss: float
    auc_loss_is_chance: bool
    mean_difference: float
    max_difference: float


@dataclass(frozen=True, kw_only=True)
class GoldenFigures:
    """Golden requests that were replayed. Differences are of probabilities.

    Fields:
        requests, real: how many, and how many of them are rows of the clicks.
        largest: of every engine, against what was expected when they were made.
        mean_drift, max_drift: of what was expected from the float model; None where that was not at hand.
    """

    requests: int
    real: int
    largest: Mapping[str, float]
    mean_drift: float | None
    max_drift: float | None


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What `verify_weights` found.

    Fields:
        files: data files that agree with the seal.
        tables: tables whose every row was read and agrees with its checksum.
        samples: held-out samples compared; 0 if the weights carry none.
        float_auc, float_log_loss: of the model as it was trained; None without samples.
        engines: one for each way of scoring that this host has, if there are samples.
        goldens: None if there are none, or they were not replayed.
        training: what training reported.
        sealed_versions, versions: of the packages that made the archive, and of those installed here.
    """

    files: int
    tables: int
    samples: int
    float_auc: float | None
    float_log_loss: float | None
    precision: str
    engines: tuple[EngineDrift, ...]
    goldens: GoldenFigures | None
    training: Mapping[str, str]
    sealed_versions: Mapping[str, str]
    versions: Mapping[str, str]

    @property
    def other_versions(self) -> dict[str, tuple[str | None, str | None]]:
        """Packages whose version, when the archive was made and here, are not the same; None: was not there."""
        then, now = self.sealed_versions, self.versions
        return {
            name: (then.get(name), now.get(name))
            for name in {**then, **now}
            if then.get(name) != now.get(name)
        }

    def check(self, max_auc_loss: float, max_drift: float = MAX_DRIFT) -> None:
        """WeightsError if any engine loses more AUC than ``max_auc_loss``, or golden scores drift further.

        A loss that may be chance passes: of 17 samples, two that change places are 0.01 of the AUC.
        ``max_drift``: of a golden probability from the trained one, on average.
        """
        for drift in self.engines:
            if drift.auc_loss > max_auc_loss and not drift.auc_loss_is_chance:
                raise WeightsError(
                    f"{drift.engine} scoring loses {drift.auc_loss:.5f} AUC against the trained model "
                    f"({drift.auc:.5f} of {self.float_auc:.5f}), and at most {max_auc_loss:.5f} is allowed; "
                    "use a wider dtype for the tables, precision fp32, or allow more with --max-auc-loss"
                )
            if drift.mean_difference > max_drift:
                raise WeightsError(
                    f"{drift.engine} scoring gives probabilities {drift.mean_difference:.5f} from the trained model's "
                    f"on average, and at most {max_drift:.5f} is allowed; use a wider dtype for the tables, "
                    "precision fp32, or allow more with --max-drift"
                )
        if self.goldens and self.goldens.mean_drift is not None and self.goldens.mean_drift > max_drift:
            raise WeightsError(
                f"the probabilities of {self.goldens.requests} golden requests are {self.goldens.mean_drift:.5f} from "
                f"the trained model's on average, and at most {max_drift:.5f} is allowed; use a wider dtype for the "
                "tables, or allow more with --max-drift"
            )

    def evaluation(self) -> Evaluation | None:
        """The figures for the seal; None without held-out samples."""
        if not self.engines:
            return None
        return Evaluation(
            samples=self.samples,
            auc=_number(self.float_auc),
            log_loss=_number(self.float_log_loss),
            engines={drift.engine: _figures(drift) for drift in self.engines},
        )


def verify_weights(folder: Path, *, build: bool = True, replay: Replay | None = None) -> Verification:
    """Check the sealed weights in ``folder``: every byte, the golden requests, the scores of the held-out samples.

    Args:
        build: compile the dense parts if this host has not yet done so.
        replay: None does not replay the golden requests.

    WeightsError if a file is damaged or a golden request is not reproduced.
    """
    sealed = SealedWeights(folder, again=True)
    # As a worker does: packages are compiled for a number of threads.
    torch.set_num_threads(sealed.declaration.serving.threads)
    scorer = Scorer.load(folder)
    held_out = read_held_out(folder)
    if held_out is not None:
        held_out.check(sealed.declaration, str(folder / HELD_OUT_FILE))
    goldens = None if replay is None else read_goldens(folder)
    engines: list[EngineDrift] = []
    largest: dict[str, float] = {}

    def measure() -> None:
        if held_out is not None:
            engines.append(_drift(scorer, held_out))
        if goldens is not None and replay is not None:
            tolerance = EAGER_TOLERANCE if scorer.engine == "eager" else TOLERANCE[scorer.precision]
            largest[scorer.engine] = replay(scorer, goldens, tolerance)

    measure()
    if (held_out is not None or goldens is not None) and sealed.declaration.serving.compile != "off":
        probes = [] if goldens is None else [golden_batch(goldens, scorer.declaration, scorer.vocabularies)]
        scorer.compile(folder, build=build, probes=probes)
        if scorer.engine == "compiled":
            measure()
    return Verification(
        files=len(sealed.seal.files),
        tables=len(sealed.tables.tables),
        samples=0 if held_out is None else len(held_out.batch),
        float_auc=None if held_out is None else auc(held_out.labels, held_out.logits),
        float_log_loss=None if held_out is None else log_loss(held_out.labels, held_out.logits),
        precision=scorer.precision,
        engines=tuple(engines),
        goldens=None if goldens is None else _golden_figures(goldens, largest),
        training=sealed.seal.training,
        sealed_versions=sealed.seal.versions,
        versions=installed_versions(),
    )


def _drift(scorer: Scorer, held_out: HeldOut) -> EngineDrift:
    logits = scorer.logits(held_out.batch)
    differences = np.abs(probabilities(logits) - probabilities(held_out.logits))
    reached = auc(held_out.labels, logits)
    compared = compare_aucs(held_out.labels, held_out.logits, logits)
    return EngineDrift(
        engine=scorer.engine,
        auc=reached,
        log_loss=log_loss(held_out.labels, logits),
        auc_loss=auc(held_out.labels, held_out.logits) - reached,
        auc_loss_is_chance=compared is None or not compared.is_significant,
        mean_difference=float(differences.mean()),
        max_difference=float(differences.max()),
    )


def _golden_figures(goldens: Goldens, largest: Mapping[str, float]) -> GoldenFigures:
    drifts = [abs(g.expected - g.trained) for g in goldens.requests if g.trained is not None]
    return GoldenFigures(
        requests=len(goldens),
        real=sum(golden.real for golden in goldens.requests),
        largest=dict(largest),
        mean_drift=sum(drifts) / len(drifts) if drifts else None,
        max_drift=max(drifts, default=None),
    )


def _figures(drift: EngineDrift) -> EngineFigures:
    found = {
        name: _number(value)
        for name, value in asdict(drift).items()
        if name in EngineFigures.__struct_fields__
    }
    return msgspec.convert(found, EngineFigures)


def _number(value: float | None) -> float | None:
    """JSON has no NaN, which the AUC of labels that are all alike is."""
    return None if value is None or not np.isfinite(value) else float(value)

"""An archive without a server: its files, its golden requests, and what serving costs in quality."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import torch

from dlrm_factory.errors import WeightsError
from dlrm_factory.goldens import Goldens, golden_batch, read_goldens
from dlrm_factory.requests.replay import replay_with
from dlrm_factory.scorer import EAGER_TOLERANCE, TOLERANCE, Scorer, probabilities
from dlrm_factory.tools.archive.group_replay import GroupReplay, replay_in_group
from dlrm_factory.tools.archive.reading import check_archive, unpacked_weights
from dlrm_factory.tools.metrics.metrics import auc, compare_aucs, log_loss
from dlrm_factory.weights.held_out import HELD_OUT_FILE, HeldOut, read_held_out
from dlrm_factory.weights.seal import EngineFigures, Evaluation, installed_versions
from dlrm_factory.weights.sealed import SealedWeights

__all__ = [
    "MAX_AUC_LOSS",
    "MAX_DIFFERENCE",
    "MAX_DRIFT",
    "MIN_OVERLAP",
    "CompiledFigures",
    "EngineDrift",
    "GoldenFigures",
    "Verification",
    "verify",
    "verify_weights",
]

MAX_AUC_LOSS = 0.0005
MAX_DRIFT = 0.02
MAX_DIFFERENCE = 0.02
MIN_OVERLAP = 0.9

# Rankings are made of the held-out samples as they come. Of fewer, one candidate more or less is too much of the mean.
_CANDIDATES = 100
_BEST = 10
_MIN_RANKINGS = 5

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class EngineDrift:
    """Distance of one way of scoring from the float model, over the held-out samples.

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
class CompiledFigures:
    """Difference that a client feels of the compiled code: its scores against the eager ones of the same weights.

    Fields:
        max_difference: of a probability, over held-out samples and golden requests.
        rankings: how many of 100 candidates each were made of the held-out samples.
        top_10_overlap: the share of the eager top 10 that is in the compiled one, on average; None without rankings.
    """

    max_difference: float
    rankings: int
    top_10_overlap: float | None


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
    """Findings of `verify`.

    Fields:
        files: data files that agree with the seal.
        tables: tables whose every row was read and agrees with its checksum.
        samples: held-out samples compared; 0 if the weights carry none.
        float_auc, float_log_loss: of the model as it was trained; None without samples.
        engines: one for each way of scoring that this host has, if there are samples.
        compiled: None if this host does not compile, or there is nothing to compare.
        goldens: None if none travel with the weights.
        training: what training reported.
        sealed_versions, versions: of the packages that made the archive, and of those installed here.
        group: golden requests through a group of ranks; None unless it was asked for.
    """

    files: int
    tables: int
    samples: int
    float_auc: float | None
    float_log_loss: float | None
    precision: str
    engines: tuple[EngineDrift, ...]
    compiled: CompiledFigures | None
    goldens: GoldenFigures | None
    training: Mapping[str, str]
    sealed_versions: Mapping[str, str]
    versions: Mapping[str, str]
    group: GroupReplay | None = None

    @property
    def other_versions(self) -> dict[str, tuple[str | None, str | None]]:
        """Packages whose version, when the archive was made and here, are not the same; None: was not there."""
        then, now = self.sealed_versions, self.versions
        return {
            name: (then.get(name), now.get(name))
            for name in {**then, **now}
            if then.get(name) != now.get(name)
        }

    def check(
        self,
        max_auc_loss: float,
        max_drift: float = MAX_DRIFT,
        *,
        max_difference: float = MAX_DIFFERENCE,
        min_overlap: float = MIN_OVERLAP,
    ) -> None:
        """WeightsError if any engine loses more AUC than ``max_auc_loss``, or scores are further off than allowed.

        A loss that may be chance passes: of 17 samples, two that change places are 0.01 of the AUC.

        Args:
            max_drift: of a golden probability from the trained one, on average.
            max_difference: of a compiled probability from the eager one.
            min_overlap: of the compiled top 10 with the eager one, over at least 5 rankings.
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
        if self.compiled is not None:
            self._check_compiled(self.compiled, max_difference, min_overlap)

    def _check_compiled(self, found: CompiledFigures, max_difference: float, min_overlap: float) -> None:
        remedy = f"declare serving.precision: fp32 in place of {self.precision}, or serving.compile: off"
        if self.precision == "fp32":
            remedy = "declare serving.compile: off"
        if found.max_difference > max_difference:
            raise WeightsError(
                f"a probability of compiled scoring in {self.precision} is {found.max_difference:.5f} from the eager "
                f"one, and at most {max_difference:.5f} is allowed; {remedy}, or allow more with --max-difference"
            )
        overlap = found.top_10_overlap
        if overlap is not None and overlap < min_overlap and found.rankings >= _MIN_RANKINGS:
            raise WeightsError(
                f"compiled scoring in {self.precision} finds {overlap:.4f} of the eager top 10, over "
                f"{found.rankings} rankings of {_CANDIDATES} held-out samples, and at least {min_overlap:.4f} is asked "
                f"for; {remedy}, or allow less with --min-overlap"
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


def verify(path: Path, *, ranks: int | None = None) -> Verification:
    """Prove the archive at ``path`` without a server, as ``dlrm verify`` does; `Verification.check` holds bounds.

    Sets torch's threads to the declared number, and compiles the dense parts if this host has not yet done so.

    Args:
        path: a ``.mar``, a ``.tar.gz``, or the folder of an archive or of sealed weights.
        ranks: replay the golden requests through a group of so many new processes too; None for as many as a worker
            of the archive has, if that is more than one.

    Raises:
        ArchiveError: the archive is damaged, was not made by dlrm, or this disk has no room to unpack it.
        WeightsError: a file is damaged or was added, or a golden request is not reproduced.
    """
    with unpacked_weights(path) as folder:
        check_archive(path, folder)
        found = verify_weights(folder)
        if ranks is None:
            declared = SealedWeights(folder).declaration.sharding.local_world_size
            ranks = declared if declared > 1 else None
        return found if ranks is None else replace(found, group=replay_in_group(folder, ranks))


def verify_weights(folder: Path, *, build: bool = True) -> Verification:
    """Check the sealed weights in ``folder``: every byte, the golden requests, the scores of the held-out samples.

    Args:
        build: compile the dense parts if this host has not yet done so.

    WeightsError if a file is damaged or a golden request is not reproduced.
    """
    sealed = SealedWeights(folder, again=True)
    # As a worker does: packages are compiled for a number of threads.
    torch.set_num_threads(sealed.declaration.serving.threads)
    scorer = Scorer.load(folder)
    held_out = read_held_out(folder)
    if held_out is not None:
        held_out.check(sealed.declaration, str(folder / HELD_OUT_FILE))
    goldens = read_goldens(folder)
    engines: list[EngineDrift] = []
    largest: dict[str, float] = {}
    # Golden requests are one batch of all, in declared order; held-out samples keep theirs.
    asked = [] if goldens is None else [golden_batch(goldens, scorer.declaration, scorer.vocabularies)]
    scored: list[list[Float32]] = []

    def measure() -> None:
        compared = [*(scorer.logits(batch) for batch in asked)]
        if held_out is not None:
            compared.insert(0, scorer.logits(held_out.batch))
            engines.append(_drift(scorer.engine, held_out, compared[0]))
        scored.append(compared)
        if goldens is not None:
            tolerance = EAGER_TOLERANCE if scorer.engine == "eager" else TOLERANCE[scorer.precision]
            largest[scorer.engine] = replay_with(scorer, goldens, tolerance)

    measure()
    if (held_out is not None or goldens is not None) and sealed.declaration.serving.compile != "off":
        scorer.compile(folder, build=build, probes=asked)
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
        compiled=_compiled_figures(*scored, ranked=held_out is not None) if len(scored) == 2 else None,
        goldens=None if goldens is None else _golden_figures(goldens, largest),
        training=sealed.seal.training,
        sealed_versions=sealed.seal.versions,
        versions=installed_versions(),
    )


def _drift(engine: str, held_out: HeldOut, logits: Float32) -> EngineDrift:
    differences = np.abs(probabilities(logits) - probabilities(held_out.logits))
    reached = auc(held_out.labels, logits)
    compared = compare_aucs(held_out.labels, held_out.logits, logits)
    return EngineDrift(
        engine=engine,
        auc=reached,
        log_loss=log_loss(held_out.labels, logits),
        auc_loss=auc(held_out.labels, held_out.logits) - reached,
        auc_loss_is_chance=compared is None or not compared.is_significant,
        mean_difference=float(differences.mean()),
        max_difference=float(differences.max()),
    )


def _compiled_figures(eager: list[Float32], compiled: list[Float32], *, ranked: bool) -> CompiledFigures:
    """``ranked``: the first arrays are of held-out samples."""
    pairs = list(zip(eager, compiled, strict=True))
    overlaps = _overlaps(*pairs[0]) if ranked else np.empty(0)
    return CompiledFigures(
        max_difference=max(
            float(np.abs(probabilities(one) - probabilities(other)).max(initial=0)) for one, other in pairs
        ),
        rankings=len(overlaps),
        top_10_overlap=float(overlaps.mean()) if len(overlaps) else None,
    )


def _overlaps(one: Float32, other: Float32) -> npt.NDArray[np.float64]:
    """The share of the 10 best by ``one`` that are among the 10 best by ``other``, of each ranking of 100 candidates.

    Equal scores rank as they come, as a server ranks them.
    """
    whole = len(one) // _CANDIDATES * _CANDIDATES
    best = [
        np.argsort(-logits[:whole].reshape(-1, _CANDIDATES), axis=1, kind="stable")[:, :_BEST]
        for logits in (one, other)
    ]
    return np.array([len(np.intersect1d(*pair)) / _BEST for pair in zip(*best, strict=True)])


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

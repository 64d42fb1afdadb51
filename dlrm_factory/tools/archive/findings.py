"""Findings on an archive: how far serving is from the trained model, and the bounds that they are held to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Literal

import msgspec
import numpy as np

from dlrm_factory.errors import WeightsError
from dlrm_factory.tools.archive.archive_code import ArchiveCode
from dlrm_factory.tools.archive.group_replay import GroupReplay
from dlrm_factory.weights.seal import EngineFigures, Evaluation

__all__ = [
    "CANDIDATES",
    "MAX_AUC_LOSS",
    "MAX_DIFFERENCE",
    "MAX_DRIFT",
    "MIN_OVERLAP",
    "CompiledFigures",
    "EngineDrift",
    "GoldenFigures",
    "Verification",
]

MAX_AUC_LOSS = 0.0005
MAX_DRIFT = 0.02
MAX_DIFFERENCE = 0.02
MIN_OVERLAP = 0.9

# Rankings are made of the held-out samples as they come. Of fewer, one candidate more or less is too much of the mean.
CANDIDATES = 100
_MIN_RANKINGS = 5


@dataclass(frozen=True, kw_only=True)
class EngineDrift:
    """Distance of one way of scoring from the float model, over the held-out samples.

    All figures are of the numbers that a client gets in JSON, probabilities.

    Fields:
        engine: ``eager`` (the tables' dtypes alone) or ``compiled`` (the dense parts' precision too).
        auc, log_loss: what it reaches.
        auc_loss: the float model's AUC less this one's.
        auc_loss_low, auc_loss_high: the 95 % interval of ``auc_loss``; None with fewer than 2 samples of a label.
        auc_loss_is_chance: whether so few samples could show that loss of models that rank equally well (p at least
            0.05 by DeLong's test).
        mean_difference, max_difference: of a probability.
        ties: samples that share their probability with one of another logit.
        float32_auc_loss, float32_ties: the same of probabilities in float32, which Arrow and KServe's binary answers
            carry.
    """

    engine: str
    auc: float
    log_loss: float
    auc_loss: float
    auc_loss_low: float | None
    auc_loss_high: float | None
    auc_loss_is_chance: bool
    mean_difference: float
    max_difference: float
    ties: int
    float32_auc_loss: float
    float32_ties: int

    def verdict(self, max_auc_loss: float) -> Literal["within", "chance", "over"]:
        """Loss of AUC against its bound: ``within`` it, over it but within ``chance``, or ``over`` it for certain."""
        if not self.auc_loss > max_auc_loss:
            return "within"
        return "chance" if self.auc_loss_is_chance else "over"

    @property
    def chance(self) -> str:
        """Reason why ``auc_loss`` may be chance, as people read it."""
        if self.auc_loss_low is None or self.auc_loss_high is None:
            return "within chance (fewer than 2 clicks or fewer than 2 non-clicks)"
        return f"within chance (95 % interval {self.auc_loss_low:+.5f} to {self.auc_loss_high:+.5f})"


@dataclass(frozen=True, kw_only=True)
class CompiledFigures:
    """Difference that a client feels of the compiled code: its scores against the eager ones of the same weights.

    Fields:
        max_difference: of a probability, over held-out samples and golden requests.
        batch_difference: of a sample's probability in one batch from the same sample's in another: of 16 and 512
            samples, and for the first 512 also of 1, 7 and 100.
        rankings: how many of 100 candidates each were made of the held-out samples.
        top_10_overlap: the share of the eager top 10 that is in the compiled one, on average; None without rankings.
    """

    max_difference: float
    batch_difference: float
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
        code: whose the code is that a server of the archive runs.
        tables: tables whose every row was read and agrees with its checksum.
        samples: held-out samples compared; 0 if the weights carry none.
        float_auc, float_log_loss: of the model as it was trained; None without samples.
        engines: one for each way of scoring that this host has, if there are samples.
        precision: of the compiled dense parts; ``is_auto`` if the declaration leaves it to us.
        compiled: None if this host does not compile, or there is nothing to compare.
        eager_reason: why the dense parts are not compiled, in the words of a log line; None if they are.
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
    is_auto: bool
    engines: tuple[EngineDrift, ...]
    compiled: CompiledFigures | None
    goldens: GoldenFigures | None
    training: Mapping[str, str]
    sealed_versions: Mapping[str, str]
    versions: Mapping[str, str]
    code: ArchiveCode | None = None
    eager_reason: str | None = None
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
        strict: bool = False,
    ) -> None:
        """WeightsError if any engine loses more AUC than ``max_auc_loss``, or scores are further off than allowed.

        A loss that may be chance passes, unless ``strict``: of 17 samples, two that change places are 0.01 of the AUC.
        `remarks` tells of it.

        Args:
            max_drift: of a golden probability from the trained one, on average.
            max_difference: of a compiled probability from the eager one, and of a sample's probability in one batch
                from that in another.
            min_overlap: of the compiled top 10 with the eager one, over at least 5 rankings unless ``strict``.
        """
        for drift in self.engines:
            verdict = drift.verdict(max_auc_loss)
            if verdict == "over" or (strict and verdict == "chance"):
                chance = f", which is {drift.chance} and refused by --strict" if verdict == "chance" else ""
                raise WeightsError(
                    f"{drift.engine} scoring loses {_shown(drift.auc_loss)} AUC against the trained model "
                    f"({drift.auc:.5f} of {self.float_auc:.5f}), and at most {max_auc_loss:g} is allowed{chance}; "
                    "use a wider dtype for the tables, precision fp32, or allow more with --max-auc-loss"
                )
            if drift.mean_difference > max_drift:
                raise WeightsError(
                    f"{drift.engine} scoring gives probabilities {_shown(drift.mean_difference)} from the trained "
                    f"model's on average, and at most {max_drift:g} is allowed; use a wider dtype for the tables, "
                    "precision fp32, or allow more with --max-drift"
                )
        if self.goldens and self.goldens.mean_drift is not None and self.goldens.mean_drift > max_drift:
            raise WeightsError(
                f"the probabilities of {self.goldens.requests} golden requests are {_shown(self.goldens.mean_drift)} "
                f"from the trained model's on average, and at most {max_drift:g} is allowed; use a wider dtype for the "
                "tables, or allow more with --max-drift"
            )
        if self.compiled is not None:
            self._check_compiled(
                self.compiled, max_difference, min_overlap, _MIN_RANKINGS if not strict else 1
            )

    def remarks(self, *, max_auc_loss: float = MAX_AUC_LOSS, min_overlap: float = MIN_OVERLAP) -> list[str]:
        """Sentences on the bounds that are not kept and do not bind, since so few samples prove nothing."""
        return [*self._remarks(max_auc_loss, min_overlap)]

    @property
    def precision_sentence(self) -> str | None:
        """Sentence on the precision of the compiled dense parts: who chose it, what bounds it; None where none is."""
        if self.compiled is None:
            return None
        if self.precision == "bf16" and self.samples:
            chosen = ", as serving.precision: auto chooses on this CPU," if self.is_auto else ""
            return (
                f"dense parts compute in bf16{chosen} within the bounds above; serving.precision: fp32 is nearer to "
                "the trained model, and slower"
            )
        if self.precision == "bf16":
            return "bf16 is declared, and golden requests alone bound what it costs: no held-out samples travel with it"
        if self.is_auto and not self.samples:
            return (
                "serving.precision: auto is fp32, for no held-out samples bound what bf16 would cost; declare bf16 to "
                "have it, bounded by --max-difference over golden requests alone"
            )
        return None

    def _remarks(self, max_auc_loss: float, min_overlap: float) -> Iterator[str]:
        for drift in self.engines:
            if drift.verdict(max_auc_loss) == "chance":
                yield (
                    f"{drift.engine}: {_shown(drift.auc_loss)} AUC lost, at most {max_auc_loss:g} allowed: over the "
                    f"bound, but {drift.chance}; --strict refuses it"
                )
        found = self.compiled
        if found is None or found.top_10_overlap is None or found.rankings >= _MIN_RANKINGS:
            return
        if found.top_10_overlap < min_overlap:
            yield (
                f"compiled: {found.top_10_overlap:.4f} of the eager top 10, at least {min_overlap:g} asked for: under "
                f"the bound, but {found.rankings} rankings prove nothing, {_MIN_RANKINGS} do; --strict refuses it"
            )

    def _check_compiled(
        self, found: CompiledFigures, max_difference: float, min_overlap: float, min_rankings: int
    ) -> None:
        remedy = f"declare serving.precision: fp32 in place of {self.precision}, or serving.compile: off"
        if self.precision == "fp32":
            remedy = "declare serving.compile: off"
        if found.max_difference > max_difference:
            raise WeightsError(
                f"a probability of compiled scoring in {self.precision} is {_shown(found.max_difference)} from the "
                f"eager one, and at most {max_difference:g} is allowed; {remedy}, or allow more with --max-difference"
            )
        if found.batch_difference > max_difference:
            raise WeightsError(
                f"a sample's probability by compiled scoring in {self.precision} is {_shown(found.batch_difference)} "
                f"from that in another batch, and at most {max_difference:g} is allowed; {remedy}, or allow more with "
                "--max-difference"
            )
        overlap = found.top_10_overlap
        if overlap is not None and overlap < min_overlap and found.rankings >= min_rankings:
            raise WeightsError(
                f"compiled scoring in {self.precision} finds {overlap:.4f} of the eager top 10, over "
                f"{found.rankings} rankings of {CANDIDATES} held-out samples, and at least {min_overlap:g} is asked "
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


def _shown(value: float) -> str:
    """Five decimals, or two digits of a number that they would not show."""
    return f"{value:.5f}" if value == 0 or abs(value) >= 1e-4 else f"{value:.1e}"

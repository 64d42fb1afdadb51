"""Results of an evaluation."""

from __future__ import annotations

from dataclasses import dataclass

from dlrm_factory.tools.data.bad_rows import UnreadableCells
from dlrm_factory.tools.evaluation.figures import Curves, Figures
from dlrm_factory.tools.evaluation.slice_values import SliceKind
from dlrm_factory.tools.metrics.history import Evaluation as HistoryPoint
from dlrm_factory.tools.metrics.metrics import AucDifference

__all__ = [
    "Best",
    "Comparison",
    "Evaluation",
    "GroupResult",
    "ModelResult",
    "SeenResult",
    "SliceResult",
    "SliceTable",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelResult:
    """One model over all samples. ``name``: as people read it. ``detail``: how it was scored, or trained."""

    name: str
    detail: str
    figures: Figures
    curves: Curves


@dataclass(frozen=True, slots=True, kw_only=True)
class Best:
    """Figures of the ground truth of generated clicks, which no model can be expected to beat.

    ``share``: how far the evaluated model's AUC is on the way from 0.5 to the best one; 1 is all of it.
    """

    auc: float | None
    log_loss: float
    share: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupResult:
    """GAUC of each model by the declared ``training.group_column``.

    Fields:
        groups, samples: groups with both labels, and the samples in them.
        aucs: in the order of `Evaluation.models`; None where no group has both labels.
        known: False if these samples do not carry the column; then there are no groups.
    """

    column: str
    groups: int
    samples: int
    aucs: tuple[float | None, ...]
    known: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The model against the baseline. ``difference`` is None where an AUC is not defined."""

    baseline: str
    difference: AucDifference | None
    judgement: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SliceResult:
    """One slice: ``figures`` of each model, in the order of `Evaluation.models`; ``kind``: of `Slice`."""

    name: str
    figures: tuple[Figures, ...]
    kind: SliceKind = "value"


@dataclass(frozen=True, slots=True, kw_only=True)
class SliceTable:
    """``overlap``: samples may be in several slices, as the column holds several ids a sample."""

    column: str
    overlap: bool
    slices: tuple[SliceResult, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenResult:
    """Samples by a sparse feature's ids that training saw, or did not.

    Fields:
        groups: of `seen_bags.GROUPS`, those with samples; what training knows best first.
        false_share: share of the ids not seen that count as seen, see `dlrm_factory.weights.seen_ids`.
    """

    feature: str
    groups: tuple[SliceResult, ...]
    false_share: float

    @property
    def share_not_seen(self) -> float:
        """Share of the samples with an id that training did not see."""
        samples = {group.name: group.figures[0].samples for group in self.groups}
        cold = samples.get("none seen", 0) + samples.get("some seen", 0)
        return cold / max(sum(samples.values()), 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Results of `evaluate`: of the only output, or of the first one and, in ``others``, of each other.

    Figures are of the samples that count for the output.

    Fields:
        model: the file or folder evaluated.
        samples_from: which samples these are, as people read it.
        models: the model; then the baseline, if one was asked for.
        best: None for real clicks.
        comparison: None without a baseline.
        slices: None without a column.
        history: the training's evaluations, in order; empty if the model carries none.
        unreadable: cells of the samples that counted as missing.
        seen: by sparse feature; None if the model carries no record of the ids that its training saw.
        grouped: GAUC; None if no group_column is declared.
        output: its name, if the model has several outputs.
        others: results of the other outputs, without history and unreadable cells, which are of all.
    """

    model: str
    samples_from: str
    models: tuple[ModelResult, ...]
    best: Best | None
    comparison: Comparison | None
    slices: SliceTable | None
    history: tuple[HistoryPoint, ...]
    unreadable: tuple[UnreadableCells, ...] = ()
    seen: tuple[SeenResult, ...] | None = None
    grouped: GroupResult | None = None
    output: str | None = None
    others: tuple[Evaluation, ...] = ()

    @property
    def outputs(self) -> tuple[Evaluation, ...]:
        """Results of every output, in order."""
        return (self, *self.others)

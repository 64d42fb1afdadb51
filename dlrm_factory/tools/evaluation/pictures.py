"""The report's pictures, as SVG. Equal figures give equal bytes with one version of matplotlib."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from dlrm_factory.tools.evaluation.results import Evaluation, ModelResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["COLOURS", "PICTURES", "draw_pictures", "picture_name"]

PICTURES = ("roc", "calibration", "scores", "learning")

# Each is one colour alone, so that a page may replace it by its own.
COLOURS = {
    "paper": "#ffffff",
    "ink": "#20262d",
    "muted": "#5f6b78",
    "line": "#dde2e8",
    "model": "#3a6ea8",  # and held out
    "baseline": "#dd7a0a",  # and validation
    "clicks": "#d9485a",
    "others": "#929ca8",  # and training
}
_MODELS = (COLOURS["model"], COLOURS["baseline"])
_WIDTH = 4.8  # inches, of every picture: two stand side by side on a screen, and one fills a phone's
_LOW, _HIGH = 3.9, 5.2
_STYLE = {
    "font.size": 9.0,
    "text.color": COLOURS["ink"],
    "axes.labelcolor": COLOURS["ink"],
    "axes.edgecolor": COLOURS["muted"],
    "axes.facecolor": COLOURS["paper"],
    "figure.facecolor": COLOURS["paper"],
    "xtick.color": COLOURS["muted"],
    "ytick.color": COLOURS["muted"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": COLOURS["line"],
    "legend.frameon": False,
    "axes.titlesize": 10.0,
    "axes.titleweight": "bold",
}
_DOT = {"marker": "o", "markersize": 3.5}


def picture_name(evaluation: Evaluation, name: str) -> str:
    """``name`` of the first output, which may be the only one; ``purchase-roc`` of an output of ``others``."""
    first = evaluation.output is None or bool(evaluation.others)
    return name if first else f"{evaluation.output}-{name}"


def draw_pictures(evaluation: Evaluation) -> dict[str, str]:
    """SVG text by name: ``roc``, ``calibration``, ``scores``, and ``learning`` if the model has a history.

    Without ``roc`` if the labels are all alike, and without ``learning`` if the training was evaluated only once: one
    point is no curve. Those of further outputs follow, see `picture_name`.
    """
    drawn: dict[str, str] = {}

    def draw(each: Evaluation, name: str, height: float, how: Callable[[Any], None]) -> None:
        own = picture_name(each, name)
        drawn[own] = _svg(own, height, how)

    for each in evaluation.outputs:
        models = each.models
        if all(model.curves.roc is not None for model in models):
            draw(each, "roc", _HIGH, partial(_roc, models=models))
        draw(each, "calibration", _HIGH, partial(_calibration, models=models))
        draw(each, "scores", _LOW if len(models) == 1 else _HIGH, partial(_scores, models=models))
        if len(each.history) > 1:
            draw(each, "learning", _HIGH, partial(_learning, evaluation=each))
    return drawn


def _svg(name: str, height: float, draw: Callable[[Any], None]) -> str:
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    # The salt makes ids that are the same in every run, and others in every picture of a page.
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name, "svg.fonttype": "path"}):
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def _legend(figure: Any) -> None:
    """Every label of the figure's axes once, below them: within the axes it would cover what is drawn."""
    handles: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=2)


def _roc(figure: Any, models: Sequence[ModelResult]) -> None:
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=COLOURS["muted"], linestyle="--", linewidth=1, label="chance, AUC 0.5")
    for model, colour in zip(models, _MODELS, strict=False):
        roc = model.curves.roc
        assert roc is not None
        label = f"{model.name}, AUC {model.figures.auc:.4f}"
        axes.plot(roc.false_positive_rate, roc.true_positive_rate, color=colour, label=label)
    axes.set(
        title="ROC curve",
        xlabel="share of non-clicks above the threshold",
        ylabel="share of clicks above the threshold",
        xlim=(0, 1),
        ylim=(0, 1),
    )
    _legend(figure)


def _calibration(figure: Any, models: Sequence[ModelResult]) -> None:
    axes, below = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    top = max(
        max(model.curves.reliability.score.max(), model.curves.reliability.click_rate.max())
        for model in models
    )
    top = min(1.0, float(top) * 1.08) or 1.0
    muted = COLOURS["muted"]
    axes.plot([0, top], [0, top], color=muted, linestyle="--", linewidth=1, label="perfectly calibrated")
    rate = models[0].figures.base_rate or 0.0
    axes.axhline(rate, color=muted, linestyle=":", linewidth=1, label=f"base rate {rate:.4f}")
    for model, colour in zip(models, _MODELS, strict=False):
        found = model.curves.reliability
        error = 1.96 * np.sqrt(found.click_rate * (1 - found.click_rate) / found.samples)
        axes.errorbar(
            found.score, found.click_rate, yerr=error, color=colour, linewidth=1, elinewidth=1,
            label=_calibration_label(model), **_DOT,
        )  # fmt: skip
        histogram = model.curves.histogram
        below.stairs(histogram.clicks + histogram.others, histogram.edges, color=colour, linewidth=1)
    axes.set(title="Calibration", ylabel="clicks / samples in the bin, ± 95%", xlim=(0, top), ylim=(0, None))
    below.set(xlabel="predicted click probability (points: mean of a bin)", ylabel="samples", ylim=(0, None))
    _thousands(below.yaxis)
    _legend(figure)


def _calibration_label(model: ModelResult) -> str:
    error = model.figures.calibration_error
    return f"{model.name}, expected error {error:.4f}"


def _scores(figure: Any, models: Sequence[ModelResult]) -> None:
    """One histogram a model, over each other on one scale; the samples are the same, and so is the legend."""
    column = figure.subplots(len(models), 1, sharex=True, squeeze=False)[:, 0]
    for axes, model in zip(column, models, strict=True):
        found = model.curves.histogram
        for counts, colour, name in (
            (found.others, COLOURS["others"], "non-clicks"),
            (found.clicks, COLOURS["clicks"], "clicks"),
        ):
            total = int(counts.sum())
            shares = counts / total if total else counts
            axes.stairs(shares, found.edges, fill=True, color=colour, alpha=0.5, label=f"{total:,} {name}")
        rate = model.figures.base_rate or 0.0
        axes.axvline(rate, color=COLOURS["muted"], linestyle=":", linewidth=1, label=f"base rate {rate:.4f}")
        axes.set(title=f"Scores by label, {model.name}", ylabel="share of that label")
    column[-1].set(
        xlabel="predicted click probability",
        xlim=(0, max(model.curves.histogram.edges[-1] for model in models)),
    )
    _legend(figure)


def _learning(figure: Any, evaluation: Evaluation) -> None:
    losses, areas = figure.subplots(2, 1, sharex=True)
    history, best = evaluation.history, evaluation.best
    samples = [point.samples for point in history]

    def draw(axes: Axes, values: Sequence[float | None], colour: str, label: str) -> None:
        known = [math.nan if value is None else value for value in values]
        axes.plot(samples, known, color=COLOURS[colour], label=label, **_DOT)

    draw(losses, [p.training_loss for p in history], "others", "training")
    draw(losses, [p.held_out_log_loss for p in history], "model", "held out")
    draw(areas, [p.held_out_auc for p in history], "model", "held out")
    if history[-1].validation_log_loss is not None:
        draw(losses, [p.validation_log_loss for p in history], "baseline", "validation")
        draw(areas, [p.validation_auc for p in history], "baseline", "validation")
    if best is not None:
        for axes, value in ((losses, best.log_loss), (areas, best.auc)):
            if value is not None:
                axes.axhline(
                    value, color=COLOURS["muted"], linestyle="--", linewidth=1, label="best reachable"
                )
    losses.set(title="Learning curve: log-loss", ylabel="log-loss, nats")
    areas.set(title="Learning curve: AUC", ylabel="area under the ROC curve")
    areas.set(xlabel="training samples seen", xlim=(0, samples[-1] * 1.03))
    _thousands(areas.xaxis)
    _legend(figure)


def _thousands(axis: Any) -> None:
    from matplotlib.ticker import EngFormatter

    axis.set_major_formatter(EngFormatter(sep=""))

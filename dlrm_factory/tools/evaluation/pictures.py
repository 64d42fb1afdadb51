"""The report's pictures, as SVG. Equal figures give equal bytes with one version of matplotlib."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dlrm_factory.tools.evaluation.results import Evaluation, ModelResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["PICTURES", "draw_pictures"]

PICTURES = ("roc", "calibration", "scores", "learning")

_COLOURS = ("#4c78a8", "#f58518")  # the model, the baseline; held out, validation
_GREY, _CLICKS, _OTHERS = "#767676", "#e45756", "#9d9d9d"
_STYLE = {
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "axes.titlesize": 10.0,
    "axes.titleweight": "bold",
}


def draw_pictures(evaluation: Evaluation) -> dict[str, str]:
    """SVG text by name: ``roc``, ``calibration``, ``scores``, and ``learning`` if the model has a history.

    Without ``roc`` if the labels are all alike.
    """
    drawn: dict[str, str] = {}
    models = evaluation.models
    if all(model.curves.roc is not None for model in models):
        drawn["roc"] = _svg("roc", (4.8, 4.4), lambda figure: _roc(figure, models))
    drawn["calibration"] = _svg("calibration", (4.8, 5.2), lambda figure: _calibration(figure, models))
    width = 4.8 * len(models)
    drawn["scores"] = _svg("scores", (width, 3.6), lambda figure: _scores(figure, models))
    if evaluation.history:
        drawn["learning"] = _svg("learning", (9.6, 3.6), lambda figure: _learning(figure, evaluation))
    return drawn


def _svg(name: str, size: tuple[float, float], draw: Callable[[Any], None]) -> str:
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    # The salt makes ids that are the same in every run, and others in every picture of a page.
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name, "svg.fonttype": "path"}):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def _roc(figure: Any, models: Sequence[ModelResult]) -> None:
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=_GREY, linestyle="--", linewidth=1, label="chance, AUC 0.5")
    for model, colour in zip(models, _COLOURS, strict=False):
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
        aspect="equal",
    )
    axes.legend(loc="lower right")


def _calibration(figure: Any, models: Sequence[ModelResult]) -> None:
    axes, below = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    top = max(
        max(model.curves.reliability.score.max(), model.curves.reliability.click_rate.max())
        for model in models
    )
    top = min(1.0, float(top) * 1.08) or 1.0
    axes.plot([0, top], [0, top], color=_GREY, linestyle="--", linewidth=1, label="perfectly calibrated")
    rate = models[0].figures.base_rate or 0.0
    axes.axhline(rate, color=_GREY, linestyle=":", linewidth=1, label=f"base rate {rate:.4f}")
    for model, colour in zip(models, _COLOURS, strict=False):
        found = model.curves.reliability
        error = 1.96 * np.sqrt(found.click_rate * (1 - found.click_rate) / found.samples)
        axes.errorbar(
            found.score, found.click_rate, yerr=error, color=colour, marker="o", markersize=3.5, linewidth=1,
            elinewidth=1, label=_calibration_label(model),
        )  # fmt: skip
        histogram = model.curves.histogram
        below.stairs(histogram.clicks + histogram.others, histogram.edges, color=colour, linewidth=1)
    axes.set(title="Calibration", ylabel="clicks / samples in the bin, ± 95%", xlim=(0, top), ylim=(0, None))
    axes.legend(loc="upper left")
    below.set(xlabel="predicted click probability (points: mean of a bin)", ylabel="samples", ylim=(0, None))
    _thousands(below.yaxis)


def _calibration_label(model: ModelResult) -> str:
    error = model.figures.calibration_error
    return f"{model.name}, expected error {error:.4f}"


def _scores(figure: Any, models: Sequence[ModelResult]) -> None:
    for axes, model in zip(figure.subplots(1, len(models), squeeze=False)[0], models, strict=True):
        found = model.curves.histogram
        for counts, colour, name in (
            (found.others, _OTHERS, "non-clicks"),
            (found.clicks, _CLICKS, "clicks"),
        ):
            total = int(counts.sum())
            shares = counts / total if total else counts
            axes.stairs(shares, found.edges, fill=True, color=colour, alpha=0.5, label=f"{total:,} {name}")
        rate = model.figures.base_rate or 0.0
        axes.axvline(rate, color=_GREY, linestyle=":", linewidth=1, label=f"base rate {rate:.4f}")
        axes.set(
            title=f"Scores by label, {model.name}",
            xlabel="predicted click probability",
            ylabel="share of the samples of that label",
            xlim=(0, found.edges[-1]),
        )
        axes.legend(loc="upper right")


def _learning(figure: Any, evaluation: Evaluation) -> None:
    left, right = figure.subplots(1, 2)
    history = evaluation.history
    samples = [point.samples for point in history]
    left.plot(
        samples,
        [p.training_loss for p in history],
        color=_OTHERS,
        marker="o",
        markersize=3.5,
        label="training",
    )
    left.plot(
        samples,
        [p.held_out_log_loss for p in history],
        color=_COLOURS[0],
        marker="o",
        markersize=3.5,
        label="held out",
    )
    right.plot(
        samples,
        [math.nan if p.held_out_auc is None else p.held_out_auc for p in history],
        color=_COLOURS[0], marker="o", markersize=3.5, label="held out",
    )  # fmt: skip
    if history[-1].validation_log_loss is not None:
        for axes, values in (
            (left, [p.validation_log_loss for p in history]),
            (right, [p.validation_auc for p in history]),
        ):
            axes.plot(
                samples,
                [math.nan if value is None else value for value in values],
                color=_COLOURS[1], marker="o", markersize=3.5, label="validation",
            )  # fmt: skip
    best = evaluation.best
    if best is not None:
        _best_line(left, best.log_loss)
        _best_line(right, best.auc)
    left.set(title="Learning curve: log-loss", ylabel="log-loss, nats")
    right.set(title="Learning curve: AUC", ylabel="area under the ROC curve")
    for axes in (left, right):
        axes.set(xlabel="training samples seen", xlim=(0, samples[-1] * 1.03))
        axes.legend()
        _thousands(axes.xaxis)


def _best_line(axes: Axes, value: float | None) -> None:
    if value is not None:
        axes.axhline(value, color=_GREY, linestyle="--", linewidth=1, label=f"best reachable {value:.4f}")


def _thousands(axis: Any) -> None:
    from matplotlib.ticker import EngFormatter

    axis.set_major_formatter(EngFormatter(sep=""))

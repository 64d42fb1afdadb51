"""A search as a picture: the best AUC so far, and each setting against the AUC."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from dlrm_factory.errors import WeightsError
from dlrm_factory.tools.tuning.results import TuningReport, TuningTrial

__all__ = ["check_format", "draw_tuning"]

_FORMATS = (".svg", ".png", ".pdf")
_COLOURS = {"adagrad": "#54a24b", "adam": "#f58518", "row_wise_adagrad": "#4c78a8", "sgd": "#b279a2"}
_GREY = "#767676"
_PANELS = (
    ("sparse_learning_rate", True),
    ("learning_rate", True),
    ("epochs", False),
    ("embedding_dim", True),
)


def draw_tuning(report: TuningReport, path: Path) -> None:
    """Draw the complete trials of ``report`` into the file ``path``: .svg, .png or .pdf.

    WeightsError for another format, or if it cannot be written.
    """
    check_format(path)
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    trials = [trial for trial in report.trials if trial.state == "complete"]
    figure = Figure(figsize=(11.0, 6.4), layout="constrained")
    course, *panels, legend = figure.subplots(2, 3).flat
    _course(course, trials, report)
    sizes = sorted({t.settings.embedding_dim for t in trials if t.settings.embedding_dim is not None})
    for axes, (name, logarithmic) in zip(panels, _PANELS, strict=True):
        if name == "embedding_dim" and not sizes:  # of a module of the user's own
            axes.axis("off")
            continue
        _points(axes, [float(getattr(trial.settings, name)) for trial in trials], trials, report)
        axes.set(xlabel=name, ylabel="validation AUC")
        if logarithmic:
            axes.set_xscale("log", base=2 if name == "embedding_dim" else 10)
        if name == "embedding_dim":
            axes.set_xticks(sizes, [str(size) for size in sizes])
            axes.minorticks_off()
            axes.set_xlim(sizes[0] / math.sqrt(2), sizes[-1] * math.sqrt(2))
    used = sorted({trial.settings.sparse_optimizer for trial in trials})
    handles = [Line2D([], [], marker="o", linestyle="", color=_COLOURS[name], label=name) for name in used]
    for marker, name in (("D", "as declared"), ("*", "best")):
        handles.append(
            Line2D([], [], marker=marker, linestyle="", color="black", fillstyle="none", label=name)
        )
    legend.axis("off")
    legend.legend(handles=handles, loc="center", frameon=False, title="optimiser of the tables")
    for axes in (course, *panels):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    try:
        figure.savefig(path, dpi=120)
    except OSError as error:
        raise WeightsError(f"{path}: cannot be written: {error.strerror}") from None


def check_format(path: Path) -> None:
    """WeightsError if `draw_tuning` cannot draw into a file of this name."""
    if path.suffix.lower() not in _FORMATS:
        raise WeightsError(f"{path}: cannot draw this format; use one of {', '.join(_FORMATS)}")


def _course(axes: Any, trials: list[TuningTrial], report: TuningReport) -> None:
    numbers = [float(trial.number) for trial in trials]
    _points(axes, numbers, trials, report)
    axes.step(numbers, np.maximum.accumulate(_areas(trials)), where="post", color=_GREY, linewidth=1)
    axes.set(
        title=f"{len(report.trials)} trials, {len(trials)} to their end",
        xlabel="trial",
        ylabel="validation AUC",
    )
    axes.xaxis.get_major_locator().set_params(integer=True)


def _points(axes: Any, places: list[float], trials: list[TuningTrial], report: TuningReport) -> None:
    colours = [_COLOURS[trial.settings.sparse_optimizer] for trial in trials]
    axes.scatter(places, _areas(trials), c=colours, s=18)
    for place, trial in zip(places, trials, strict=True):
        for special, marker, size in ((report.declared, "D", 70), (report.best, "*", 190)):
            if trial == special:
                axes.scatter(
                    [place],
                    [trial.validation_auc],
                    marker=marker,
                    s=size,
                    facecolors="none",
                    edgecolors="black",
                )


def _areas(trials: list[TuningTrial]) -> list[float]:
    return [trial.validation_auc or 0.0 for trial in trials]

"""The report as one HTML page, which needs no other file and runs no script."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from dlrm_factory.tools.evaluation.figures import CALIBRATION_BINS
from dlrm_factory.tools.evaluation.results import Evaluation
from dlrm_factory.tools.evaluation.shown import figure_rows, sentences, slice_rows
from dlrm_factory.tools.evaluation.slice_values import MOST_SLICES, NUMBER_BINS

__all__ = ["page"]

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 62rem; margin: 2rem auto;
  padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; display: block; overflow-x: auto; }
th, td { padding: .25rem .8rem; text-align: right; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; padding-left: 0; overflow-wrap: anywhere; }
thead th { border-bottom: 2px solid #888; }
figure { display: inline-block; margin: 0 1rem 1rem 0; vertical-align: top; max-width: 100%; }
figure svg { max-width: 100%; height: auto; }
.judgement { border-left: 4px solid #4c78a8; padding: .4rem 1rem; background: #f3f6fa; }
.note { color: #555; font-size: .9rem; }
"""

_CAPTIONS = {
    "roc": "ROC curve: share of clicks found against share of non-clicks taken along, over all thresholds",
    "calibration": "Calibration: clicks against predicted clicks, in bins of about equally many samples",
    "scores": "Scores of clicks and of non-clicks",
    "learning": "Learning curve: log-loss and AUC over the training samples seen",
}


def page(evaluation: Evaluation, pictures: Mapping[str, str]) -> str:
    """The whole page. ``pictures``: SVG by name, set in as it is; every text of the model or the data is escaped."""
    parts = [f"<h1>Evaluation of {escape(evaluation.model)}</h1>", *_heading(evaluation)]
    parts += ["<h2>Figures</h2>", _table(*figure_rows(evaluation)), _figure_notes()]
    for sentence in sentences(evaluation):
        parts.append(f'<p class="judgement">{escape(sentence)}</p>')
    parts += ["<h2>Pictures</h2>", *_figures(pictures, ("roc", "calibration", "scores"))]
    parts += ["<h2>Learning curve</h2>", *_learning(evaluation, pictures)]
    if evaluation.slices is not None:
        parts += [f"<h2>By {escape(evaluation.slices.column)}</h2>", _table(*slice_rows(evaluation))]
        parts.append(_slice_notes(evaluation.slices.overlap))
    body = "\n".join(parts)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Evaluation of {escape(evaluation.model)}</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def _heading(evaluation: Evaluation) -> list[str]:
    details = "; ".join(f"{model.name}: {model.detail}" for model in evaluation.models)
    return [f"<p>{escape(_sentence(evaluation.samples_from))}.<br>{escape(details)}.</p>"]


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(heading)}</th>" for heading in headings)
    lines = ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows]
    body = "\n".join(f"<tr>{line}</tr>" for line in lines)
    return f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>"


def _figures(pictures: Mapping[str, str], names: Sequence[str]) -> list[str]:
    return [
        f'<figure role="img" aria-label="{escape(_CAPTIONS[name])}">{_inline(pictures[name])}</figure>'
        for name in names
        if name in pictures
    ]


def _inline(svg: str) -> str:
    """Without the XML declaration and document type, which HTML does not take within a page."""
    return svg[svg.index("<svg") :]


def _learning(evaluation: Evaluation, pictures: Mapping[str, str]) -> list[str]:
    if not evaluation.history:
        return ["<p>The model carries no history of its training, so there is no learning curve.</p>"]
    return _figures(pictures, ("learning",))


def _figure_notes() -> str:
    return (
        '<p class="note">AUC: the chance that a click scores above a non-click; its interval is DeLong\'s. '
        "Normalised entropy: log-loss over that of always predicting the base rate; below 1 is better than that. "
        "Calibration: predicted clicks over clicks; 1 is best. Expected calibration error: the mean distance of "
        f"predicted from true click rates over {CALIBRATION_BINS} bins of about equally many samples.</p>"
    )


def _slice_notes(overlap: bool) -> str:
    text = (
        f"More than {MOST_SLICES} different values: numbers are cut into {NUMBER_BINS} bins of about equally many "
        f"samples; of other values the {MOST_SLICES} most frequent are shown, and the rest together. "
        "AUC is not defined where all labels are alike."
    )
    if overlap:
        text += " A sample with several values is in the slice of each."
    return f'<p class="note">{text}</p>'

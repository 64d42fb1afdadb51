"""What ``dlrm evaluate`` prints."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from dlrm_factory.tools.evaluation import Evaluation

__all__ = ["evaluation_tables"]


def evaluation_tables(evaluation: Evaluation) -> Iterator[RenderableType]:
    """Where the samples are from, the figures, the judgement, the slices."""
    from dlrm_factory.tools.evaluation.shown import figure_rows, sentences, slice_rows

    yield Text(f"{evaluation.model}: {evaluation.samples_from}")
    for model in evaluation.models:
        yield Text(f"{model.name}: {model.detail}")
    yield Text("")
    yield _table(*figure_rows(evaluation))
    for sentence in sentences(evaluation):
        yield Text(sentence)
    if evaluation.slices is not None:
        yield Text("")
        yield _table(*slice_rows(evaluation))


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    # Text, not markup: names of models, columns and values may hold brackets.
    first, *others = headings
    table = Table(box=None, pad_edge=False)
    table.add_column(Text(first), min_width=12, overflow="fold", vertical="bottom")
    for heading in others:
        table.add_column(
            Text("\n".join(heading.rsplit(" ", 1))), justify="right", no_wrap=True, vertical="bottom"
        )
    for row in rows:
        table.add_row(*map(Text, row))
    return table

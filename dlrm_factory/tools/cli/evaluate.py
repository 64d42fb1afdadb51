"""``dlrm evaluate``: quality of a trained model, on rows that it has not seen."""

from __future__ import annotations

import json as jsonlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.text import Text

from dlrm_factory.tools.cli.progress import evaluation_progress
from dlrm_factory.tools.cli.tables import evaluation_tables
from dlrm_factory.tools.data.files import FileFormat

if TYPE_CHECKING:
    from dlrm_factory.tools.evaluation import Evaluation, EvaluationSource

__all__ = ["evaluate"]

_FILE_WIDTH = 140


def evaluate(
    model: Annotated[
        Path,
        typer.Argument(
            help="A checkpoint (.safetensors), evaluated as trained, or an archive, evaluated as served."
        ),
    ],
    data: Annotated[
        list[Path] | None,
        typer.Option(
            help="CSV, Parquet or Criteo file, or a folder of them; its held-out rows are evaluated.",
            show_default="what travels with the model",
        ),
    ] = None,
    held_out: Annotated[
        list[Path] | None,
        typer.Option(help="File or folder whose rows are all evaluated.", show_default="a share of --data"),
    ] = None,
    all_rows: Annotated[
        bool, typer.Option("--all-rows", help="Evaluate all rows, also those that were trained on.")
    ] = False,
    rows: Annotated[
        int | None, typer.Option(min=1, help="The most rows to read of --data.", show_default="all")
    ] = None,
    file_format: Annotated[
        FileFormat, typer.Option("--format", help="Of the files; auto goes by their names and first lines.")
    ] = "auto",
    slice_by: Annotated[
        str | None,
        typer.Option(
            "--slice", help="Also by this column of the data, a feature or not.", show_default=False
        ),
    ] = None,
    baseline: Annotated[
        Literal["lightgbm"] | None,
        typer.Option(help="Train this on the same training rows, and put it beside.", show_default=False),
    ] = None,
    scratch: Annotated[
        Path | None,
        typer.Option(
            help="Keep the baseline's encoded rows in this folder on disk, not in memory.",
            show_default="only what memory cannot hold",
        ),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(help="Write report.html, report.json and pictures to this folder.", show_default=False),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Evaluate a model: AUC, log-loss, normalised entropy and calibration on held-out rows."""
    # Importing torch takes seconds, which `dlrm --help` should not.
    from dlrm_factory.tools.evaluation import (
        EvaluationSource,
        check_report_folder,
        write_report,
    )
    from dlrm_factory.tools.evaluation import as_json as to_json

    if report is not None:
        check_report_folder(report)
    source = EvaluationSource(
        data=data or (),
        held_out=held_out or (),
        all_rows=all_rows,
        rows=rows,
        scratch=scratch,
        file_format=file_format,
        column=slice_by,
    )
    found = _evaluate(model, source, baseline)
    files = [] if report is None else write_report(found, report)
    if as_json:
        typer.echo(jsonlib.dumps(to_json(found) | {"report": None if not files else str(files[0])}))
        return
    console = Console()
    if not console.is_terminal:  # a file or a pipe has no width, so nothing need be folded
        console = Console(width=_FILE_WIDTH)
    for each in evaluation_tables(found):
        console.print(each, soft_wrap=isinstance(each, Text))
    if files:
        typer.echo(f"wrote {files[0]}")


def _evaluate(model: Path, source: EvaluationSource, baseline: str | None) -> Evaluation:
    from dlrm_factory.tools.evaluation import evaluate as run_evaluation

    with evaluation_progress() as (observe, observe_trees):
        return run_evaluation(
            model, source, baseline=baseline is not None, observe=observe, observe_trees=observe_trees
        )

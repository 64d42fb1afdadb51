"""``dlrm tune``: a search for training settings on the validation part → a declaration."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from dlrm_factory.errors import ConfigError, DLRMError
from dlrm_factory.tools.cli.declarations import declaration_of
from dlrm_factory.tools.cli.progress import tuning_progress
from dlrm_factory.tools.cli.tables import tuning_lines, tuning_table, wide_console
from dlrm_factory.tools.data.files import FileFormat

if TYPE_CHECKING:
    from dlrm_factory.tools.tuning import TuningReport

__all__ = ["tune"]

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(s|m|h|d)")
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def seconds_of(text: str) -> float:
    """``30m`` → 1800.0. DLRMError if ``text`` is no duration above zero."""
    match = _DURATION.fullmatch(text.strip())
    seconds = float(match[1]) * _SECONDS[match[2]] if match else 0.0
    if seconds <= 0:
        raise DLRMError(
            f'--for: "{text}" is no duration; write a number and s, m, h or d, such as 90s, 30m or 2h'
        )
    return seconds


def tune(
    config: Annotated[
        str, typer.Argument(help="A declaration (YAML file), or a preset: tiny, demo, criteo.")
    ],
    duration: Annotated[
        str, typer.Option("--for", help="Time for all trials, such as 90s, 30m or 2h.", show_default=False)
    ],
    data: Annotated[
        list[Path] | None,
        typer.Option(
            help="CSV, Parquet or Criteo file, or a folder of them; give it several times for several.",
            show_default="clicks are generated from a known model",
        ),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="The declaration to write.")] = Path(
        "tuned.yaml"
    ),
    study: Annotated[
        Path | None,
        typer.Option(help="File of the trials; one that is there goes on.", show_default="OUTPUT.study"),
    ] = None,
    trials: Annotated[
        int | None, typer.Option(min=1, help="Most trials to begin.", show_default="no limit")
    ] = None,
    image: Annotated[
        Path | None, typer.Option(help="Draw the search into this .svg, .png or .pdf.", show_default=False)
    ] = None,
    held_out: Annotated[
        list[Path] | None,
        typer.Option(help="File or folder with the rows to hold out, which decide nothing here."),
    ] = None,
    file_format: Annotated[
        FileFormat, typer.Option("--format", help="Of the files; auto goes by their names and first lines.")
    ] = "auto",
    rows: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Clicks to generate; with --data, the most rows to read.",
            show_default="a fitting number, all",
        ),
    ] = None,
    scratch: Annotated[
        Path | None,
        typer.Option(
            help="Keep the encoded rows in this folder on disk, not in memory.",
            show_default="only what memory cannot hold",
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="Torch threads.", show_default="1 for a small model, else all cores"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Search for optimiser, learning rates, epochs and dimension, and write the declaration that does best.

    The validation part of the training rows decides; `dlrm train` the result for figures on held-out rows.
    """
    seconds = seconds_of(duration)
    declaration = declaration_of(config)
    if Path(config).exists() and output.exists() and output.samefile(config):
        raise ConfigError(["is the declaration that is read; name another --output"], str(output))
    # Importing torch takes seconds, which `dlrm --help` should not.
    import torch

    from dlrm_factory.tools.training.threads import fitting_threads
    from dlrm_factory.tools.tuning import check_format, draw_tuning
    from dlrm_factory.tools.tuning import tune as search

    if image is not None:
        check_format(image)
    torch.set_num_threads(threads or fitting_threads(declaration, torch.get_num_threads()))
    with tuning_progress() as tell:
        report = search(
            declaration,
            output=output,
            seconds=seconds,
            study=study,
            trials=trials,
            data=data or (),
            held_out=held_out or (),
            rows=rows,
            scratch=scratch,
            file_format=file_format,
            tell=tell,
        )
    if image is not None:
        draw_tuning(report, image)
    if as_json:
        typer.echo(msgspec.json.encode(_as_json(report)).decode())
        return
    wide_console().print(tuning_table(report))
    for line in tuning_lines(report):
        typer.echo(line)
    typer.echo(f"wrote {output}; for figures on held-out rows: dlrm train {output}")


def _as_json(report: TuningReport) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.to_builtins(report, enc_hook=str)
    return found

"""``dlrm train``: a table of clicks → a trained checkpoint."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer
from rich.console import Console

from dlrm_factory.cli.declarations import declaration_of
from dlrm_factory.cli.training_progress import training_progress
from dlrm_factory.cli.training_table import training_table
from dlrm_factory.config import DLRMDeclaration
from dlrm_factory.config.checks import problems_of
from dlrm_factory.errors import ConfigError

if TYPE_CHECKING:
    from dlrm_factory.training import TrainingReport

__all__ = ["train"]


def train(
    config: Annotated[
        str,
        typer.Argument(help="A declaration (YAML file), or a preset: tiny, demo, criteo."),
    ],
    data: Annotated[
        list[Path] | None,
        typer.Option(
            help="CSV or Parquet file with the declared columns; give it several times for several files.",
            show_default="clicks are generated from a known model",
        ),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="The checkpoint to write.")] = Path(
        "checkpoint.safetensors"
    ),
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Passes over the data.", show_default="as declared")
    ] = None,
    rows: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Clicks to generate; with --data, the most rows to read.",
            show_default="a fitting number, all",
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            min=0, help="Of weights, split, order and generated clicks.", show_default="as declared"
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="Torch threads.", show_default="1 for a small model, else all cores"),
    ] = None,
    write_data: Annotated[
        Path | None,
        typer.Option(help="Keep the generated clicks in this .csv or .parquet file.", show_default=False),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Train a model and save its checkpoint. Prints AUC and log-loss on held-out rows."""
    declaration = _overridden(declaration_of(config), epochs=epochs, seed=seed)
    # Importing torch takes seconds, which `dlrm --help` should not.
    import torch

    from dlrm_factory.training import train as run_training
    from dlrm_factory.training.threads import fitting_threads

    torch.set_num_threads(threads or fitting_threads(declaration, torch.get_num_threads()))
    with training_progress() as observe:
        report = run_training(
            declaration, output=output, data=data or (), rows=rows, write_data=write_data, observe=observe
        )
    if int(os.environ.get("RANK", "0")) == 0:
        _print(report, output, as_json)


def _overridden(declaration: DLRMDeclaration, **options: int | None) -> DLRMDeclaration:
    """``declaration`` with the training options that were given."""
    given = {name: value for name, value in options.items() if value is not None}
    training = msgspec.structs.replace(declaration.training, **given)
    overridden = msgspec.structs.replace(declaration, training=training)
    if problems := problems_of(overridden):
        raise ConfigError(problems)
    return overridden


def _print(report: TrainingReport, output: Path, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({"checkpoint": str(output)} | asdict(report)))
        return
    Console().print(training_table(report))
    typer.echo(f"saved {output}")

"""``dlrm train``: a table of clicks → a trained checkpoint, in one process or several."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer
from rich.console import Console

from dlrm_factory.config import DLRMDeclaration
from dlrm_factory.config.checks import problems_of
from dlrm_factory.errors import ConfigError, DLRMError
from dlrm_factory.tools.cli.declarations import declaration_of
from dlrm_factory.tools.cli.progress import training_progress
from dlrm_factory.tools.cli.tables import (
    bad_rows_lines,
    seed_lines,
    training_table,
    unfinished_lines,
    unreadable_lines,
)
from dlrm_factory.tools.data.files import FileFormat
from dlrm_factory.tools.trust import trust_own_code

if TYPE_CHECKING:
    from dlrm_factory.tools.training import Progress, TrainingReport

__all__ = [
    "train",
]


@dataclass(frozen=True, kw_only=True)
class TrainingCall:
    """Arguments of a training run, as they travel to the ranks.

    Fields:
        options: of `dlrm_factory.tools.training.train`.
        threads: torch threads of a rank; None for a fitting number.
        ranks_here: ranks that share this host's cores.
        tensorboard: where to write logs.
    """

    declaration: DLRMDeclaration
    options: dict[str, Any]
    threads: int | None
    ranks_here: int
    tensorboard: Path | None


def leads() -> bool:
    """True if this process is rank 0, or alone."""
    return int(os.environ.get("RANK", "0")) == 0


def train_rank(call: TrainingCall) -> TrainingReport:
    """Train on this process's rank; rank 0 draws the bar and writes the logs."""
    import torch

    from dlrm_factory.tools.training import train
    from dlrm_factory.tools.training.threads import fitting_threads

    cores = max(1, torch.get_num_threads() // call.ranks_here)
    torch.set_num_threads(call.threads or fitting_threads(call.declaration, cores))
    with _observers(call.tensorboard) as observe:
        return train(call.declaration, observe=observe, **call.options)


def train_spawned_rank(call: TrainingCall) -> TrainingReport:
    """`train_rank` in a process that has just begun."""
    if not leads():
        logging.getLogger("dlrm_factory").setLevel(logging.ERROR)  # rank 0 has said it
    return train_rank(call)


@contextmanager
def _observers(logs: Path | None) -> Iterator[Callable[[Progress], None]]:
    with ExitStack() as stack:
        observers = []
        if leads():
            observers.append(stack.enter_context(training_progress()))
            if logs is not None:
                from dlrm_factory.tools.training.tensorboard import tensorboard

                observers.append(stack.enter_context(tensorboard(logs)))

        def observe(progress: Progress) -> None:
            for each in observers:
                each(progress)

        yield observe


def train(
    config: Annotated[
        str,
        typer.Argument(help="A declaration (YAML file), or a preset: tiny, demo, criteo."),
    ],
    data: Annotated[
        list[Path] | None,
        typer.Option(
            help="CSV, Parquet or Criteo file, or a folder of them; give it several times for several.",
            show_default="clicks are generated from a known model",
        ),
    ] = None,
    held_out: Annotated[
        list[Path] | None,
        typer.Option(
            help="File or folder with the rows to hold out; all of --data trains then.",
            show_default="a share of --data",
        ),
    ] = None,
    file_format: Annotated[
        FileFormat, typer.Option("--format", help="Of the files; auto goes by their names and first lines.")
    ] = "auto",
    scratch: Annotated[
        Path | None,
        typer.Option(
            help="Keep the encoded rows in this folder on disk, not in memory.",
            show_default="only what memory cannot hold",
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
    nproc: Annotated[
        int,
        typer.Option(min=1, help="Processes on this host that train together; batch_size is of each."),
    ] = 1,
    checkpoint_dir: Annotated[
        Path | None,
        typer.Option(help="Save snapshots of the run in this folder, to go on from.", show_default=False),
    ] = None,
    checkpoint_every: Annotated[
        int | None, typer.Option(min=1, help="Steps between snapshots.", show_default="each epoch")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the newest whole snapshot in --checkpoint-dir.")
    ] = False,
    seeds: Annotated[
        int,
        typer.Option(
            min=1,
            help="Train from so many seeds, on the same rows, and print mean and spread; the first is saved.",
        ),
    ] = 1,
    tensorboard: Annotated[
        Path | None, typer.Option(help="Write TensorBoard logs to this folder.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Train a model and save its checkpoint. Prints AUC and log-loss on held-out rows."""
    _check_together(nproc, checkpoint_dir, checkpoint_every, resume)
    declaration = _overridden(declaration_of(config), epochs=epochs, seed=seed)
    trust_own_code(declaration)
    options: dict[str, Any] = {
        "output": output,
        "data": data or (),
        "held_out": held_out or (),
        "rows": rows,
        "scratch": scratch,
        "file_format": file_format,
        "write_data": write_data,
        "checkpoint_dir": checkpoint_dir,
        "checkpoint_every": checkpoint_every,
        "resume": resume,
        "seeds": seeds,
    }
    call = TrainingCall(
        declaration=declaration, options=options, threads=threads, ranks_here=nproc, tensorboard=tensorboard
    )
    report = _train(call)
    if leads():
        _print(report, output, as_json)


def _train(call: TrainingCall) -> TrainingReport:
    if call.ranks_here == 1:
        return train_rank(call)
    # Importing torch takes seconds, which `dlrm --help` should not.
    from dlrm_factory.tools.launch import launch

    try:
        return launch(train_spawned_rank, call, processes=call.ranks_here)
    except KeyboardInterrupt:
        typer.echo("dlrm: interrupted; all processes were stopped", err=True)
        raise typer.Exit(130) from None


def _check_together(
    nproc: int, checkpoint_dir: Path | None, checkpoint_every: int | None, resume: bool
) -> None:
    """Options that need or exclude each other."""
    if checkpoint_dir is None and (resume or checkpoint_every is not None):
        option = "--resume" if resume else "--checkpoint-every"
        raise DLRMError(f"{option} needs --checkpoint-dir, the folder of the snapshots")
    if nproc > 1 and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise DLRMError("--nproc is for one process to start others, and torchrun has done so; leave it out")


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
        typer.echo(msgspec.json.encode({"checkpoint": str(output)} | msgspec.to_builtins(report)).decode())
        return
    Console().print(training_table(report))
    for line in (
        *bad_rows_lines(report),
        *unreadable_lines(report),
        *unfinished_lines(report),
        *seed_lines(report),
    ):
        typer.echo(line)
    typer.echo(f"saved {output}")

"""``dlrm stage``: the folder from which plain torch-model-archiver makes the archive."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from dlrm_factory.tools.cli.byte_progress import byte_progress

__all__ = ["stage"]


def stage(
    checkpoint: Annotated[
        Path,
        typer.Argument(help="Checkpoint (.safetensors), or a folder of sealed weights.", show_default=False),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", help="Folder to write; must not exist or be empty.", show_default=False
        ),
    ],
    model_name: Annotated[str, typer.Option(help="Of the archive in the command that is printed.")] = "dlrm",
    version: Annotated[str, typer.Option(help="Of the archive in the command that is printed.")] = "1.0",
    export_path: Annotated[Path, typer.Option(help="Model store in the command that is printed.")] = Path(
        "model_store"
    ),
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace a folder staged before.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print folder and command as JSON.")] = False,
) -> None:
    """Write an archive's content into a folder, for torch-model-archiver; prints the command."""
    # Brings torch, which `dlrm --help` need not wait for.
    from dlrm_factory.tools.archive import archiver_command, check_names
    from dlrm_factory.tools.archive import stage as stage_archive

    check_names(model_name, version)
    # Asked for first: a folder that the command cannot use is refused before the work.
    command = archiver_command(output, model_name=model_name, version=version, export_path=export_path)
    with byte_progress("staging") as progress:
        stage_archive(checkpoint, output, force=force, progress=progress)
    if as_json:
        typer.echo(json.dumps({"folder": str(output), "command": command}))
    else:
        typer.echo(f"staged {output}; make the archive with\n{command}")

"""``dlrm preset``: a ready declaration to start from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dlrm_factory.config import criteo, dump_declaration
from dlrm_factory.config import preset as named_preset
from dlrm_factory.config.declaration import TableDtype
from dlrm_factory.errors import ConfigError
from dlrm_factory.tools.cli.written import write_new

__all__ = ["preset"]


def preset(
    name: Annotated[str, typer.Argument(help="tiny, demo or criteo.", show_default=False)],
    cap: Annotated[
        int | None, typer.Option(help="criteo: the most rows of a table. [default: the full counts]")
    ] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="criteo: take raw columns; hash ids, log counts.")
    ] = False,
    dtype: Annotated[
        TableDtype | None, typer.Option(help="criteo: how tables are stored for serving. [default: int8]")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write. [default: print]")
    ] = None,
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace a file that exists.")] = False,
) -> None:
    """Print a ready declaration as YAML, to edit and train from."""
    if name == "criteo":
        declaration = criteo(cap=cap, raw=raw, dtype=dtype or "int8")
    else:
        declaration = named_preset(name)
        if cap is not None or raw or dtype is not None:
            raise ConfigError([f"preset {name} takes no --cap, --raw or --dtype; criteo does"])
    text = dump_declaration(declaration)
    if output is None:
        typer.echo(text, nl=False)
        return
    write_new(output, text, force=force)
    typer.echo(f"wrote {output}")

"""Declarations on the command line: ``dlrm preset``, the CONFIG argument, a file that is written."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dlrm_factory.config import (
    DLRMDeclaration,
    criteo,
    dump_declaration,
    read_declaration,
)
from dlrm_factory.config import preset as named_preset
from dlrm_factory.config.declaration import TableDtype
from dlrm_factory.errors import ConfigError

__all__ = [
    "declaration_of",
    "preset",
    "write_new",
]


def declaration_of(config: str) -> DLRMDeclaration:
    """The declaration in the file ``config``; a bare word that is no file names a preset."""
    if Path(config).exists() or Path(config).suffix or "/" in config:
        return read_declaration(config)
    return named_preset(config)


def write_new(path: Path, text: str, *, force: bool) -> None:
    """Write ``text`` into the file ``path``; a file that holds just that stays.

    Raises ConfigError if another file is there and not to be replaced, or if it cannot be written.
    """
    try:
        if path.is_file() and path.read_bytes() == text.encode():
            return
        with path.open("w" if force else "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise ConfigError(["exists; give --force to replace it"], str(path)) from None
    except OSError as error:
        raise ConfigError([f"cannot be written: {error.strerror}"], str(path)) from None


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

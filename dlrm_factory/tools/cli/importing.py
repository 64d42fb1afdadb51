"""``dlrm import``: weights of another maker → a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
import typer

from dlrm_factory.errors import ConfigError
from dlrm_factory.tools.cli.declarations import declaration_of
from dlrm_factory.tools.cli.progress import byte_progress

if TYPE_CHECKING:
    from dlrm_factory.tools.importing import ImportReport

__all__ = ["import_model"]


def import_model(
    weights: Annotated[
        list[Path],
        typer.Argument(help="A file, the files of all ranks, or a folder.", show_default=False),
    ],
    config: Annotated[
        str | None,
        typer.Option(
            help="The declaration (YAML file) of the model, its tables in the order it was built with.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="The checkpoint to write.")] = Path(
        "imported.safetensors"
    ),
    source_format: Annotated[
        Literal["auto", "torchrec", "dlrm_s_pytorch", "dcp", "safetensors"],
        typer.Option("--format", help="What WEIGHTS must be; auto looks at them."),
    ] = "auto",
    vocabulary: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TABLE=FILE",
            help="Of a table with ids: vocabulary: a text file, one id a line, row 0 first. Several times for several.",
            show_default=False,
        ),
    ] = None,
    write_config: Annotated[
        Path | None,
        typer.Option(
            help="Write a first declaration from the shapes to this new file, and import nothing.",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Import trained weights: state dicts (of all ranks), checkpoint folders, dlrm_s_pytorch files, safetensors."""
    if write_config is not None:
        if config is not None:
            raise ConfigError(["give --config or --write-config, not both"])
        _write_declaration(weights, write_config, source_format, as_json)
        return
    if config is None:
        raise ConfigError(["give --config model.yaml; --write-config model.yaml writes a first one"])
    declaration = declaration_of(config)
    # Brings torch, which `dlrm --help` need not wait for.
    from dlrm_factory.tools.importing import import_weights

    with byte_progress("importing") as progress:
        report = import_weights(
            weights,
            declaration,
            output,
            source_format=source_format,
            vocabularies=_vocabularies(vocabulary or []),
            progress=progress,
        )
    if as_json:
        typer.echo(msgspec.json.encode({"checkpoint": str(output)} | msgspec.to_builtins(report)).decode())
    else:
        _print(report, output, declaration.serving.precision)


def _write_declaration(
    weights: list[Path],
    path: Path,
    source_format: Literal["auto", "torchrec", "dlrm_s_pytorch", "dcp", "safetensors"],
    as_json: bool,
) -> None:
    from dlrm_factory.tools.importing import first_declaration_text

    if path.exists():
        raise ConfigError(["exists; name another file"], str(path))
    text = first_declaration_text(weights, path.parent, source_format=source_format)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise ConfigError([f"cannot be written: {error.strerror}"], str(path)) from None
    if as_json:
        typer.echo(msgspec.json.encode({"config": str(path)}).decode())
        return
    typer.echo(f"wrote {path}: look over its tables' order and its features, then")
    typer.echo(f"dlrm import {' '.join(map(str, weights))} --config {path} --output imported.safetensors")


def _vocabularies(options: list[str]) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for option in options:
        table, separator, file = option.partition("=")
        if not (table and separator and file):
            raise ConfigError([f'--vocabulary "{option}": is not TABLE=FILE'])
        if table in files:
            raise ConfigError([f'--vocabulary "{option}": {table} has {files[table]} already'])
        files[table] = Path(file)
    return files


def _print(report: ImportReport, output: Path, precision: str) -> None:
    typer.echo(
        f"imported {report.weights} weights ({report.parameters:,} numbers, {report.tables} tables); "
        f"read as {report.source}, named as by {report.naming}"
    )
    if report.ignored:
        shown = ", ".join(report.ignored[:5]) + (" …" if len(report.ignored) > 5 else "")
        typer.echo(f"left out {len(report.ignored)} that are not the model's weights: {shown}")
    for note in report.notes:
        typer.echo(f"note: {note}")
    typer.echo(
        "it has no held-out samples, so `dlrm archive` cannot compare AUC: compare some scores yourself"
    )
    if precision == "bf16":
        typer.echo("serving.precision is bf16, and golden requests alone will bound what that costs")
    elif precision == "auto":
        typer.echo("serving.precision: auto is fp32 for it on every CPU; bf16 is faster, if you declare it")
    typer.echo(f"saved {output}")

"""``dlrm bench memory``: what each worker costs."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dlrm_factory.config import DLRMDeclaration, format_bytes, parse_bytes
from dlrm_factory.errors import DataError
from dlrm_factory.tools.archive.reading import read_archive_declaration
from dlrm_factory.tools.cli.progress import byte_progress
from dlrm_factory.tools.cli.tables import wide_console

if TYPE_CHECKING:
    from dlrm_factory.tools.bench.memory.measuring import MemoryReport

__all__ = ["memory"]


def memory(
    archive: Annotated[
        Path | None, typer.Argument(help="Archive to serve. Default: a generated one.", show_default=False)
    ] = None,
    generate: Annotated[
        str, typer.Option(metavar="SIZE", help="Tables of the generated model, e.g. 1GB or 5GB.")
    ] = "1GB",
    workers: Annotated[str, typer.Option(metavar="N,N,…", help="Numbers of workers, rising.")] = "1,2,4",
    folder: Annotated[
        Path, typer.Option(help="Where a temporary folder is made for the model and the server.")
    ] = Path(),
    as_json: Annotated[bool, typer.Option("--json", help="Print all numbers as JSON.")] = False,
) -> None:
    """Weigh the workers of a server of its own: private, shared and proportional memory, and load times.

    Exits 1 when a worker takes more for itself than its imports and 5 % of the tables.
    """
    scales = _scales(workers)
    with _temporary(folder) as here:
        served, declaration = _served(archive, generate, here)
        report = _measure(served, declaration, scales, here / "run")
    if as_json:
        typer.echo(json.dumps(report.as_dict(), indent=2))
    else:
        _print(report)
    if not report.holds:
        raise typer.Exit(1)


def _measure(archive: Path, declaration: DLRMDeclaration, scales: list[int], run_dir: Path) -> MemoryReport:
    # Brings torch, which `dlrm --help` need not wait for.
    from dlrm_factory.tools.bench.memory.measuring import measure_memory

    with Console(stderr=True).status("measuring") as status:
        return measure_memory(
            archive, declaration, scales, run_dir=run_dir, tell=lambda what: status.update(escape(what))
        )


def _served(archive: Path | None, generate: str, folder: Path) -> tuple[Path, DLRMDeclaration]:
    """The archive to serve and its declaration; generated in ``folder`` if none is given."""
    if archive is not None:
        return archive.absolute(), read_archive_declaration(archive)
    from dlrm_factory.tools.bench.random_archive import (
        archive_random_model,
        criteo_of_size,
    )

    try:
        declaration = criteo_of_size(parse_bytes(generate))
    except ValueError as error:
        raise DataError(f"--generate: {error}") from error
    with byte_progress("generating") as progress:
        return archive_random_model(declaration, folder, progress), declaration


@contextmanager
def _temporary(parent: Path) -> Iterator[Path]:
    """A folder on a disk of the user's choice: many systems keep /tmp in memory, which is measured here."""
    try:
        here = Path(tempfile.mkdtemp(prefix=".dlrm-bench-", dir=parent.absolute()))
    except OSError as error:
        raise DataError(f"--folder {parent}: no folder can be made there: {error.strerror}") from error
    try:
        yield here
    finally:
        shutil.rmtree(here, ignore_errors=True)


def _scales(text: str) -> list[int]:
    words = text.split(",")
    if not all(word.strip().isdecimal() for word in words):
        raise DataError(f'--workers "{text}": give numbers such as 1,2,4')
    scales = [int(word) for word in words]
    if scales[0] < 1 or scales != sorted(set(scales)):
        raise DataError(f'--workers "{text}": give numbers that rise from 1 or more')
    return scales


def _print(report: MemoryReport) -> None:
    console = wide_console()
    console.print(f"tables: {format_bytes(report.table_bytes)}", highlight=False)
    table = Table(
        "workers", "pid", "own", "private", "shared", "proportional", "tables mapped", "ready after"
    )
    for scale in report.scales:
        for i, worker in enumerate(scale.workers):
            found = worker.memory
            sizes = (found.own, found.private, found.shared, found.proportional, found.table_pages)
            first = (str(len(scale.workers)), f"{scale.ready_s:.1f} s") if i == 0 else ("", "")
            table.add_row(first[0], str(worker.pid), *map(_megabytes, sizes), first[1])
        imports = scale.imports
        parts = (imports.own, imports.private, imports.shared, imports.proportional)
        table.add_row("", "imports", *map(_megabytes, parts), "", "", end_section=True)
    console.print(table)
    console.print(
        "own: private, without pages of the table file, which the next worker that reads them shares. tables: pages "
        "of the table file that are mapped. ready: seconds from the start, or from the call that scaled. imports: a "
        "process that only imports the handler.\n" + _load_lines(report),
        highlight=False,
    )
    console.print(
        f"{'holds' if report.holds else 'DOES NOT HOLD'}: each worker takes at most "
        f"{format_bytes(report.heaviest)} for itself; allowed are imports + 5 % of the tables, "
        f"{format_bytes(report.allowed)}",
        highlight=False,
    )
    if not all(scale.touched for scale in report.scales):
        console.print("[yellow]Not every worker was given a request for every page.[/yellow]")


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.0f}"


def _load_lines(report: MemoryReport) -> str:
    loading = report.loading
    said = ", ".join(f"{seconds:.1f} s" for scale in report.scales for seconds in scale.loaded_s) or "nothing"
    return (
        f"loading: tables mapped in {loading.map_s * 1000:.1f} ms, every page touched in {loading.touch_s:.2f} s, "
        f"together {loading.ratio:.2f} of reading the file once ({loading.read_s:.2f} s); file in the page cache.\n"
        f"the scorer without imports and compiling: {loading.model_s:.2f} s; workers said of their own load: {said}"
    )

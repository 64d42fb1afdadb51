"""Command that runs the comparison and prints its table: ``.venv/bin/python scripts/compare --help``."""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from compare.archives import make_store
from compare.rows import ROWS
from compare.runs import Comparison
from compare.servers import running_targets
from dlrm_factory.config import criteo
from dlrm_factory.errors import DLRMError
from dlrm_factory.tools.cli.tables import wide_console


def compare(
    rounds: Annotated[int, typer.Option(min=1, help="Of all measurements; medians are printed.")] = 3,
    seconds: Annotated[float, typer.Option(min=0.5, help="Of each measurement.")] = 5.0,
    cap: Annotated[int, typer.Option(min=1, help="The most rows of a table of the Criteo shape.")] = 100_000,
    output: Annotated[Path | None, typer.Option(help="Write all numbers as JSON.")] = None,
) -> None:
    """Measure this project's server against an echo, a stock-like handler and the bare model, in turn."""
    logging.getLogger("torchrec").setLevel(logging.ERROR)
    console = Console(stderr=True)
    declaration = criteo(cap=cap)
    with (
        tempfile.TemporaryDirectory(prefix="dlrm-compare-") as folder,
        console.status("making archives") as status,
    ):
        here = Path(folder)
        store = make_store(declaration, here)
        status.update("starting three servers")
        with running_targets(store, here) as targets:
            comparison = Comparison(
                declaration=declaration, store=store, targets=targets, seconds=seconds, scratch=here
            )
            for _ in range(rounds):
                comparison.run_round(lambda what: status.update(escape(what)))
    if output:
        found = {key: [o.as_dict() for o in outcomes] for key, outcomes in comparison.outcomes.items()}
        output.write_text(json.dumps({"numbers": comparison.numbers, "outcomes": found}, indent=2) + "\n")
    _print(comparison, rounds, seconds)


def _print(comparison: Comparison, rounds: int, seconds: float) -> None:
    numbers = comparison.numbers
    table = Table("work", "ours", "against", "theirs", "ratio", "to reach", "")
    for row in ROWS:
        ours, theirs = (_shown(median(numbers[key])) for key in (row.ours, row.theirs))
        bound = "" if row.bound is None else f"{'≤' if row.at_most else '≥'} {row.bound:g}"
        met = {True: "yes", False: "no", None: ""}[row.met(numbers)]
        table.add_row(row.work, ours, row.reference, theirs, f"{row.ratio(numbers):.2f}", bound, met)
    console = wide_console()
    console.print(table)
    console.print(
        f"medians of {rounds} rounds of {seconds:g} s; {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
        highlight=False,
    )


def _shown(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def main() -> None:
    """Run the command line; an error of this project is one line and exit status 1."""
    try:
        typer.run(compare)
    except DLRMError as error:
        sys.exit(f"compare: {error}")

"""Command that runs the comparison and prints its table: ``.venv/bin/python scripts/compare --help``."""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from compare.fastapi_server import missing_packages
from compare.machine import describe_machine
from compare.measurements import targets_of
from compare.rows import ROWS, Row, choose_rows, without_fastapi
from dlrm_factory.config import criteo
from dlrm_factory.errors import DLRMError
from dlrm_factory.tools.cli.tables import wide_console
from dlrm_factory.tools.quiet import quiet_libraries

__all__ = ["available_rows", "compare", "main", "result"]


def compare(
    rounds: Annotated[int, typer.Option(min=1, help="Of all measurements; medians are printed.")] = 3,
    seconds: Annotated[float, typer.Option(min=0.5, help="Of each measurement.")] = 5.0,
    only: Annotated[
        str | None,
        typer.Option(
            metavar="ROW,…", help=f"These rows alone, * allowed: {', '.join(r.name for r in ROWS)}."
        ),
    ] = None,
    cap: Annotated[int, typer.Option(min=1, help="The most rows of a table of the Criteo shape.")] = 100_000,
    output: Annotated[Path | None, typer.Option("--json", help="Write all numbers to this file.")] = None,
) -> None:
    """Measure this project's server against others and its scorer against the bare model, in turn."""
    logging.getLogger("torchrec").setLevel(logging.ERROR)
    console = Console(stderr=True)
    rows, left_out = available_rows(
        [each.strip() for each in only.split(",")] if only else [], missing_packages()
    )
    if left_out:
        console.print(left_out, highlight=False, markup=False, soft_wrap=True)
    if not rows:
        raise typer.Exit(1)
    # These bring torch, which a wrong row need not wait for.
    from compare.archives import make_store
    from compare.runs import Comparison
    from compare.servers import running_targets

    machine = describe_machine()
    keys = {key for row in rows for key in (row.ours, row.theirs)}
    declaration = criteo(cap=cap)
    with (
        tempfile.TemporaryDirectory(prefix="dlrm-compare-") as folder,
        console.status("making archives") as status,
    ):
        here = Path(folder)
        store = make_store(declaration, here)
        status.update("starting servers")
        with running_targets(store, here, targets_of(keys)) as targets:
            comparison = Comparison(
                declaration=declaration,
                store=store,
                targets=targets,
                keys=keys,
                seconds=seconds,
                scratch=here,
            )
            for _ in range(rounds):
                comparison.run_round(lambda what: status.update(escape(what)))
    machine["load_average_after"] = [round(each, 1) for each in os.getloadavg()]
    if output:
        found = result(rows, comparison.numbers, machine)
        found |= {"rounds": rounds, "seconds": seconds, "cap": cap}
        found["outcomes"] = {key: [o.as_dict() for o in all_] for key, all_ in comparison.outcomes.items()}
        output.write_text(json.dumps(found, indent=2) + "\n")
    _print(rows, comparison.numbers, machine)
    print(f"medians of {rounds} rounds of {seconds:g} s")


def available_rows(patterns: Sequence[str], missing: Sequence[str]) -> tuple[list[Row], str | None]:
    """The wanted rows that can be measured, and a line about the others when packages are ``missing``."""
    wanted = choose_rows(patterns)
    rows = without_fastapi(wanted) if missing else wanted
    if len(rows) == len(wanted):
        return rows, None
    names = ", ".join(row.name for row in wanted if row not in rows)
    line = (
        f"left out: {names}; not installed: {', '.join(missing)}. scripts/setup installs them, "
        "as does: .venv/bin/pip install -e '.[compare]'"
    )
    return rows, line


def result(rows: Sequence[Row], numbers: dict[str, list[float]], machine: dict[str, Any]) -> dict[str, Any]:
    """Everything that was found, for JSON. Ratios and numbers are medians over the rounds."""
    return {
        "machine": machine,
        "rows": [
            {
                "name": row.name,
                "work": row.work,
                "reference": row.reference,
                "ours": median(numbers[row.ours]),
                "theirs": median(numbers[row.theirs]),
                "ratio": row.ratio(numbers),
                "to_reach": row.bound,
                "at_most": row.at_most,
                "met": row.met(numbers),
            }
            for row in rows
        ],
        "numbers": numbers,
    }


def _print(rows: Sequence[Row], numbers: dict[str, list[float]], machine: dict[str, Any]) -> None:
    table = Table("row", "work", "ours", "against", "theirs", "ratio", "to reach", "")
    for row in rows:
        ours, theirs = (_shown(median(numbers[key])) for key in (row.ours, row.theirs))
        bound = "" if row.bound is None else f"{'≤' if row.at_most else '≥'} {row.bound:g}"
        met = {True: "yes", False: "no", None: ""}[row.met(numbers)]
        table.add_row(
            row.name, row.work, ours, row.reference, theirs, f"{row.ratio(numbers):.2f}", bound, met
        )
    wide_console().print(table)
    bf16 = ", ".join(machine["bf16"]) or "none"
    print(f"{machine['date']}; {machine['cpu']}; bf16: {bf16}; {machine['cores']} cores")
    print(f"load average before {machine['load_average'][0]}, after {machine['load_average_after'][0]}")
    print(", ".join(f"{name} {version}" for name, version in machine["versions"].items()))


def _shown(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def main() -> None:
    """Run the command line; an error of this project is one line and exit status 1."""
    quiet_libraries()
    try:
        typer.run(compare)
    except DLRMError as error:
        sys.exit(f"compare: {error}")

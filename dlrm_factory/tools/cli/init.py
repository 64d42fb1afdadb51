"""``dlrm init``: data → a first declaration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dlrm_factory.tools.cli.declarations import write_new
from dlrm_factory.tools.cli.progress import row_progress
from dlrm_factory.tools.data.files import FileFormat

if TYPE_CHECKING:
    from dlrm_factory.tools.init import Draft

__all__ = ["init"]


def init(
    data: Annotated[
        list[Path],
        typer.Argument(help="CSV, Parquet or Criteo files, or folders of them.", show_default=False),
    ],
    label: Annotated[
        str,
        typer.Option(
            help='The column of 0 and 1, or a comparison such as "rating >= 4".', show_default=False
        ),
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write. [default: print]")
    ] = None,
    rows: Annotated[
        int | None, typer.Option(min=1, help="Look at the first so many rows only.", show_default="all")
    ] = None,
    file_format: Annotated[
        FileFormat, typer.Option("--format", help="Of the files; auto goes by their names and first lines.")
    ] = "auto",
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace a file that exists.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was found as one JSON object.")] = False,
) -> None:
    """Write a first declaration for your data, with the reason for each column's part in it."""
    # It imports what trains, and so torch, which takes seconds; `dlrm --help` should not.
    from dlrm_factory.tools.init import draft_declaration

    with row_progress() as observe:
        draft = draft_declaration(data, label, rows=rows, file_format=file_format, observe=observe)
    if output is not None:
        write_new(output, draft.text, force=force)
    if as_json:
        typer.echo(json.dumps(_as_json(draft, output)))
    elif output is None:
        typer.echo(draft.text, nl=False)
    else:
        kinds = [role.kind for role in draft.roles]
        left_out = kinds.count("left out") + kinds.count("time")
        typer.echo(
            f"wrote {output}: {kinds.count('dense')} dense and {kinds.count('sparse')} sparse features, "
            f"{left_out} column{'' if left_out == 1 else 's'} left out"
        )


def _as_json(draft: Draft, output: Path | None) -> dict[str, Any]:
    return {
        "output": None if output is None else str(output),
        "rows": draft.rows,
        "all_rows": draft.all_rows,
        "clicks": draft.clicks,
        "columns": [
            {
                "name": role.column,
                "role": role.kind,
                "reason": role.reason,
                "distinct": (parts if role.sparse and role.sparse.max_length > 1 else profile.distinct).count,
                "distinct_is_exact": (
                    parts if role.sparse and role.sparse.max_length > 1 else profile.distinct
                ).exact,
                "missing": profile.missing,
                "wrong": role.wrong,
                "missing_values": [] if role.dense is None else list(role.dense.missing_values or ()),
            }
            for role, profile in zip(draft.roles, draft.profiles, strict=True)
            for parts in (profile.parts,)
        ],
        "declaration": draft.text,
    }

"""`draft_declaration`: files → profiles → roles → a declaration with its reasons."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import yaml

from dlrm_factory.config.declaration import DenseFeature, SparseFeature, Table
from dlrm_factory.config.label import parse_label
from dlrm_factory.config.reading import parse_declaration
from dlrm_factory.errors import DataError, near_matches
from dlrm_factory.tools.data.files import ClickFiles, FileFormat
from dlrm_factory.tools.data.split import first_rows
from dlrm_factory.tools.init.labels import LabelProfile
from dlrm_factory.tools.init.profile import ColumnProfile
from dlrm_factory.tools.init.roles import Role, as_dense, embedding_dim, layer_sizes, names_id, role_of
from dlrm_factory.tools.training.optimizers import MAX_ADAM_VALUES

__all__ = [
    "Draft",
    "bad_rows_bound",
    "draft_declaration",
    "passes",
]

_FEW, _SOME, _MANY, _VERY_MANY = 2_000, 50_000, 1_000_000, 10_000_000

_WIDTH = 10**6  # never fold a line


def passes(rows: int, table_values: int) -> list[str]:
    """Batch size, optimisers, epochs, decay of the rates and early stopping, each a line of YAML.

    Few rows are seen several times, until a validation part says that it is enough; then the model is trained anew on
    all of them. Of many rows that part is small, so that leaving it out costs nothing. Very many teach all in one pass.

    Args:
        rows: of the data.
        table_values: numbers in all tables together.
    """
    batch = 64 if rows < 10_000 else 256 if rows < 50_000 else 512 if rows < _MANY else 4096
    if rows < _FEW:
        return [
            f"batch_size: {batch}",
            "epochs: 5  # too few rows for early stopping: the validation part would say little",
            "learning_rate_decay: linear",
        ]
    if rows < _MANY:
        epochs, patience = (30, 3) if rows < 10_000 else (20, 3) if rows < 50_000 else (6, 2)
        optimizers = []
        if rows >= _SOME and table_values <= MAX_ADAM_VALUES:
            epochs = 4
            optimizers = [
                "learning_rate: 0.003",
                "sparse_optimizer: adam  # better here than row_wise_adagrad; on CPU for small tables only",
                "sparse_learning_rate: 0.005",
            ]
        return [
            f"batch_size: {batch}",
            f"epochs: {epochs}  # at most: training stops when {patience} in a row are no better on the validation",
            "# part, a tenth of the rows that are not held out; then it begins anew with all of them, for as long",
            f"early_stopping: {patience}",
            "validation: 0.1",
            "refit: true",
            "learning_rate_decay: linear",
            *optimizers,
        ]
    if rows < _VERY_MANY:
        return [
            f"batch_size: {batch}",
            "epochs: 3  # at most: training stops when an epoch is no better on the validation part",
            "early_stopping: 1",
            "validation: 0.02",
            "learning_rate_decay: linear",
        ]
    return [
        f"batch_size: {batch}",
        "epochs: 1  # so many rows teach in one pass; `dlrm train` says if more would likely help",
        f"evaluate_every: {max(rows // batch // 10, 1)}",
        "learning_rate_decay: linear",
    ]


def declaration_text(
    roles: Sequence[Role],
    *,
    label: str,
    source: Sequence[Path],
    rows: int,
    all_rows: bool,
    clicks: float,
    bad_share: float,
) -> str:
    """The declaration; ``bad_share`` of the rows have no label."""
    dim = next(role.table.embedding_dim for role in roles if role.table is not None)
    dense_sizes, over_sizes = layer_sizes(dim)
    sparse = [role for role in roles if role.sparse is not None]
    lines = [
        _comment(
            f"Drafted from {'all' if all_rows else 'the first'} {rows:,} rows of {', '.join(map(str, source))}."
        ),
        _comment("Look it over: what a column means, its numbers cannot tell. Then `dlrm train` it."),
        "architecture: dlrm",
        f"dense_arch_layer_sizes: {dense_sizes}",
        f"over_arch_layer_sizes: {over_sizes}",
        "dense_features:",
        *_entries([(role, _dense(role.dense)) for role in roles if role.dense is not None]),
        "sparse_features:",
        *_entries([(role, _sparse(role.sparse)) for role in sparse if role.sparse is not None]),
        _comment(
            f"One embedding_dim for all tables: {dim} is twice the fourth root of the most ids, rounded up."
        ),
        "tables:",
        *[f"- {_flow(_table(role.table))}" for role in sparse if role.table is not None],
        *_left_out(roles),
        "serving: {profile: throughput}",
        *_training(roles, label, rows, clicks, bad_share),
    ]
    return "\n".join(lines) + "\n"


def _entries(entries: list[tuple[Role, dict[str, Any]]]) -> list[str]:
    """Each with its reason in the line above."""
    return [line for role, entry in entries for line in (_comment(role.reason), f"- {_flow(entry)}")]


def _dense(feature: DenseFeature) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "name": feature.name,
        "default": feature.default,
        "transform": feature.transform,
    }
    if feature.missing_values:
        entry["missing_values"] = list(feature.missing_values)
    return entry if feature.unreadable == "error" else entry | {"unreadable": "missing"}


def _sparse(feature: SparseFeature) -> dict[str, Any]:
    entry = {
        "name": feature.name,
        "table": feature.table,
        "ids": feature.ids,
        "max_length": feature.max_length,
    }
    if feature.ids == "vocabulary":
        entry["out_of_vocabulary"] = feature.out_of_vocabulary
    return entry if feature.over_max_length == "error" else entry | {"over_max_length": "truncate"}


def _table(table: Table) -> dict[str, Any]:
    entry: dict[str, Any] = msgspec.to_builtins(table)
    kept = ["name", "num_embeddings", "embedding_dim", *(["pooling"] if table.pooling == "mean" else [])]
    return {key: entry[key] for key in kept}


def _left_out(roles: Sequence[Role]) -> list[str]:
    left = [role for role in roles if role.kind == "left out"]
    if not left:
        return []
    return [_comment("Columns left out:"), *[_comment(f"  {role.column}: {role.reason}") for role in left]]


def _training(roles: Sequence[Role], label: str, rows: int, clicks: float, bad_share: float) -> list[str]:
    lines = [
        "training:",
        f"  {_pair('label', label)}  # {clicks:.1%} of the rows are clicks",
        *[f"  {line}" for line in passes(rows, _table_values(roles))],
    ]
    for role in roles:
        if role.kind == "time":
            lines += [
                f"  # {role.column} looks like the time ({role.reason}). To hold out the latest rows:",
                "  # split: time",
                f"  # {_pair('time_column', role.column)}",
            ]
    if bad_share:
        lines.append(
            f"  max_bad_rows: {bad_rows_bound(bad_share)}  # {bad_share:.3%} of these rows have no label; "
            "room for data that has more"
        )
    return lines


def bad_rows_bound(share: float) -> float:
    """The first of 0.001, 0.002, 0.005, 0.01, … that is at least twice ``share``; from 0.25 on halfway to all rows.

    A part of the data, or the data of another day, has more or less of them than the rows that were looked at.
    """
    steps = (step / 10**power for power in (3, 2, 1) for step in (1, 2, 5))
    halfway = math.ceil(50 * (1 + share)) / 100
    return next((step for step in steps if step >= 2 * share), min(halfway, 0.99))


def _table_values(roles: Sequence[Role]) -> int:
    tables = [role.table for role in roles if role.table is not None]
    return sum(table.num_embeddings * table.embedding_dim for table in tables)


def _pair(key: str, value: str) -> str:
    return yaml.safe_dump({key: value}, width=_WIDTH, allow_unicode=False).strip()


def _flow(entry: dict[str, Any]) -> str:
    return yaml.safe_dump(entry, default_flow_style=True, sort_keys=False, width=_WIDTH).strip()


def _comment(text: str) -> str:
    """One line, whatever characters a file's name or cell has."""
    return "# " + "".join(character if character.isprintable() else "?" for character in text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A declaration and what it was made from.

    Fields:
        text: YAML with the reasons as comments.
        rows: that were looked at; ``all_rows`` if there are no others.
        clicks: the share of labelled rows that are clicks.
        profiles, roles: of every column but the label's, in the order of the file.
    """

    text: str
    rows: int
    all_rows: bool
    clicks: float
    profiles: tuple[ColumnProfile, ...]
    roles: tuple[Role, ...]


def draft_declaration(
    paths: Sequence[Path],
    label: str,
    *,
    rows: int | None = None,
    file_format: FileFormat = "auto",
    observe: Callable[[int, int | None], None] = lambda done, total: None,
) -> Draft:
    """Draft a first declaration for the data in ``paths``, which loads and trains as it is.

    Args:
        paths: CSV, Parquet or Criteo files, or folders of them.
        label: a column of 0 and 1, or a comparison such as ``rating >= 4``.
        rows: look at the first so many only.
        file_format: of the files; auto goes by their names and first lines.
        observe: called with the rows done and, if known, their number in all.

    Raises:
        DataError: the files cannot be read, the label is none, or no column can be a feature.
    """
    files = ClickFiles(paths, file_format)
    columns = files.column_names()
    target = LabelProfile(parse_label(label))
    if target.label.column not in columns:
        raise DataError(
            f'{files.paths[0]}: there is no column "{target.label.column}" for the label'
            f"{near_matches(target.label.column, columns)}; the file has {', '.join(columns)}"
        )
    profiles = [ColumnProfile(name) for name in columns if name != target.label.column]
    total = files.rows()
    total = total if rows is None or total is None else min(rows, total)
    # One row more than is wanted tells whether there are others.
    seen, all_rows = 0, True
    for chunk in first_rows(files.chunks(columns), None if rows is None else rows + 1):
        batch = chunk.columns
        if rows is not None and seen + batch.num_rows > rows:
            batch, all_rows = batch.slice(0, rows - seen), False
        target.add(batch[target.label.column])
        for profile in profiles:
            profile.add(batch[profile.name])
        seen += batch.num_rows
        observe(seen, total)
    if not seen:
        raise DataError(f"{files.paths[0]}: there are no rows")
    target.check()
    roles = _roles(profiles, all_rows)
    clicks = target.clicks / (seen - target.missing)
    text = declaration_text(
        roles,
        label=label,
        source=paths,
        rows=seen,
        all_rows=all_rows,
        clicks=clicks,
        bad_share=target.missing / seen,
    )
    parse_declaration(text, source="the drafted declaration")
    return Draft(
        text=text, rows=seen, all_rows=all_rows, clicks=clicks, profiles=tuple(profiles), roles=tuple(roles)
    )


def _roles(profiles: Sequence[ColumnProfile], all_rows: bool) -> list[Role]:
    first = [role_of(profile, all_rows=all_rows) for profile in profiles]
    by_name = {profile.name: profile for profile in profiles}
    sizes = [
        (by_name[role.column].parts if role.sparse.max_length > 1 else by_name[role.column].distinct).count
        for role in first
        if role.sparse is not None
    ]
    dim = embedding_dim(sizes)
    roles = [role_of(profile, all_rows=all_rows, embedding_dim=dim) for profile in profiles]
    if not any(role.kind == "dense" for role in roles):
        roles = _with_a_number(roles, by_name, all_rows)
    for kind, needed in (("dense", "a number"), ("sparse", "ids")):
        if not any(role.kind == kind for role in roles):
            reasons = "".join(f"\n  {role.column}: {role.kind}, {role.reason}" for role in roles)
            raise DataError(
                f"no column can be taken as {needed}, and a DLRM needs at least one; add one{reasons}"
            )
    return roles


def _with_a_number(roles: list[Role], profiles: dict[str, ColumnProfile], all_rows: bool) -> list[Role]:
    """``roles`` with one column of codes taken as a number, if there is one to spare.

    The one with the most values, of those whose names are none of ids if there are any.
    """
    numbers = [
        (role, as_dense(profiles[role.column], all_rows=all_rows)) for role in roles if role.kind == "sparse"
    ]
    able = [
        (profiles[role.column].distinct.count, role, dense) for role, dense in numbers if dense is not None
    ]
    if not able or len(numbers) < 2:
        return roles
    _, chosen, dense = max(able, key=lambda entry: (not names_id(entry[1].column), entry[0]))
    return [dense if role is chosen else role for role in roles]

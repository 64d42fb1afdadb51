"""Roles → YAML that a person goes on with: the reasons are its comments."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import yaml

from dlrm_factory.config.declaration import DenseFeature, SparseFeature, Table
from dlrm_factory.tools.init.passes import passes
from dlrm_factory.tools.init.roles import Role
from dlrm_factory.tools.init.table_sizes import layer_sizes

__all__ = ["declaration_text"]

_WIDTH = 10**6  # never fold a line


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
    entry = {"name": feature.name, "default": feature.default, "transform": feature.transform}
    return entry if feature.unreadable == "error" else entry | {"unreadable": "missing"}


def _sparse(feature: SparseFeature) -> dict[str, Any]:
    entry = {
        "name": feature.name,
        "table": feature.table,
        "ids": feature.ids,
        "max_length": feature.max_length,
    }
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
        *[f"  {line}" for line in passes(rows)],
    ]
    for role in roles:
        if role.kind == "time":
            lines += [
                f"  # {role.column} looks like the time ({role.reason}). To hold out the latest rows:",
                "  # split: time",
                f"  # {_pair('time_column', role.column)}",
            ]
    if bad_share:
        lines.append(f"  max_bad_rows: {_bound(bad_share)}  # {bad_share:.3%} of the rows have no label")
    return lines


def _bound(share: float) -> float:
    """Somewhat more than ``share``: two digits, rounded up."""
    digits = 1 - math.floor(math.log10(1.2 * share))
    return min(math.ceil(1.2 * share * 10**digits) / 10**digits, 0.99)


def _pair(key: str, value: str) -> str:
    return yaml.safe_dump({key: value}, width=_WIDTH, allow_unicode=False).strip()


def _flow(entry: dict[str, Any]) -> str:
    return yaml.safe_dump(entry, default_flow_style=True, sort_keys=False, width=_WIDTH).strip()


def _comment(text: str) -> str:
    """One line, whatever characters a file's name or cell has."""
    return "# " + "".join(character if character.isprintable() else "?" for character in text)

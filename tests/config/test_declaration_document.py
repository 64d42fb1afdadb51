"""docs/declaration.md names every field with its default, and every choice."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import msgspec
import pytest

from dlrm_factory.config import (
    DenseFeature,
    DLRMDeclaration,
    ModuleArchitecture,
    Output,
    ServingOptions,
    ShardingOptions,
    SparseFeature,
    Table,
    TrainingOptions,
)

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "declaration.md").read_text(encoding="utf-8")
SECTIONS = {
    "The model": DLRMDeclaration,
    "`architecture`": ModuleArchitecture,
    "`outputs`": Output,
    "`dense_features`": DenseFeature,
    "`sparse_features`": SparseFeature,
    "`tables`": Table,
    "`sharding`": ShardingOptions,
    "`serving`": ServingOptions,
    "`training`": TrainingOptions,
}


def rows_of(section: str) -> dict[str, tuple[str, str]]:
    """(default, meaning) by field."""
    body = next(part for part in TEXT.split("\n## ") if part.startswith(section))
    rows = {}
    for line in body.splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if len(cells) == 3:
            rows |= dict.fromkeys(re.findall(r"`(\w+)`", cells[0]), (cells[1], cells[2]))
    return rows


@pytest.mark.parametrize("section", SECTIONS)
def test_every_field_is_explained_and_no_other(section: str) -> None:
    assert set(rows_of(section)) == set(SECTIONS[section].__struct_fields__)


@pytest.mark.parametrize("section", SECTIONS)
def test_defaults_are_those_of_the_code(section: str) -> None:
    rows = rows_of(section)
    for field in msgspec.structs.fields(SECTIONS[section]):
        default = rows[field.name][0]
        if field.default is msgspec.NODEFAULT:
            assert field.default_factory is not msgspec.NODEFAULT or default == "needed", field.name
        elif field.default is not None:
            shown = str(field.default).lower() if isinstance(field.default, bool) else str(field.default)
            assert shown in default.replace("`", "").replace("\\", ""), field.name


def choices(hint: Any) -> list[str]:
    literals = [part for part in (hint, *get_args(hint)) if get_origin(part) is Literal]
    return [value for literal in literals for value in get_args(literal)]


@pytest.mark.parametrize("section", SECTIONS)
def test_every_choice_is_named(section: str) -> None:
    rows = rows_of(section)
    for name, hint in get_type_hints(SECTIONS[section]).items():
        for choice in choices(hint):
            assert f"`{choice}`" in " ".join(rows[name]), (name, choice)

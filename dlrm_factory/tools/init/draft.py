"""`draft_declaration`: files → profiles → roles → a declaration with its reasons."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dlrm_factory.config.label import parse_label
from dlrm_factory.config.reading import parse_declaration
from dlrm_factory.errors import DataError, near_matches
from dlrm_factory.tools.data.files import ClickFiles, FileFormat
from dlrm_factory.tools.data.split import first_rows
from dlrm_factory.tools.init.labels import LabelProfile
from dlrm_factory.tools.init.profile import ColumnProfile
from dlrm_factory.tools.init.roles import Role, as_dense, role_of
from dlrm_factory.tools.init.table_sizes import embedding_dim
from dlrm_factory.tools.init.yaml_text import declaration_text

__all__ = ["Draft", "draft_declaration"]


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
    """A first declaration for the data in ``paths``, which loads and trains as it is.

    Args:
        label: a column of 0 and 1, or a comparison such as ``rating >= 4``.
        rows: look at the first so many only.
        observe: told of the rows done and, if known, of how many there are.

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
        roles = _with_a_number(roles, by_name)
    for kind, needed in (("dense", "a number"), ("sparse", "ids")):
        if not any(role.kind == kind for role in roles):
            reasons = "".join(f"\n  {role.column}: {role.kind}, {role.reason}" for role in roles)
            raise DataError(
                f"no column can be taken as {needed}, and a DLRM needs at least one; add one{reasons}"
            )
    return roles


def _with_a_number(roles: list[Role], profiles: dict[str, ColumnProfile]) -> list[Role]:
    """``roles`` with one column of codes taken as a number, the one with the most values, if there is one to spare."""
    numbers = [(role, as_dense(profiles[role.column])) for role in roles if role.kind == "sparse"]
    able = [
        (profiles[role.column].distinct.count, role, dense) for role, dense in numbers if dense is not None
    ]
    if not able or len(numbers) < 2:
        return roles
    _, chosen, dense = max(able, key=lambda entry: entry[0])
    return [dense if role is chosen else role for role in roles]

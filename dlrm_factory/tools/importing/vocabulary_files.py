"""Vocabularies of an imported model: a text file a table, one id a line, in the order of the table's rows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from dlrm_factory.config.declaration import DLRMDeclaration
from dlrm_factory.errors import WeightsError, near_matches
from dlrm_factory.features import Vocabularies, build_vocabularies

__all__ = ["read_vocabularies"]


def read_vocabularies(files: Mapping[str, Path], declaration: DLRMDeclaration) -> Vocabularies | None:
    """The vocabularies of all tables with ``ids: vocabulary``; None if there are none.

    WeightsError if a table's file is missing or not wanted, or a line is empty, there twice, or one too many.
    """
    wanted = declaration.vocabulary_tables
    for table in files:
        if table not in wanted:
            raise WeightsError(
                f'--vocabulary {table}: no feature with ids: vocabulary uses a table "{table}"'
                f"{near_matches(table, wanted)}"
            )
    missing = [table for table in wanted if table not in files]
    if missing:
        options = " ".join(f"--vocabulary {table}=FILE" for table in missing)
        raise WeightsError(
            f"{', '.join(missing)}: ids: vocabulary needs the ids of the rows; give {options}, "
            "a text file with one id a line, row 0 first"
        )
    if not wanted:
        return None
    return build_vocabularies({table: _ids(files[table], table, declaration) for table in wanted})


def _ids(path: Path, table: str, declaration: DLRMDeclaration) -> list[str]:
    room = declaration.vocabulary_room(table)
    ids: list[str] = []
    seen: dict[str, int] = {}
    try:
        with path.open(encoding="utf-8", newline="\n") as file:
            for number, line in enumerate(file, start=1):
                text = line.rstrip("\n").removesuffix("\r")
                if not text:
                    raise WeightsError(
                        f"{path}: line {number} is empty; each line is the id of a row of {table}"
                    )
                if seen.setdefault(text, number) != number:
                    raise WeightsError(
                        f'{path}: line {number}: "{text}" is also line {seen[text]}; an id has one row'
                    )
                if number > room:
                    raise WeightsError(
                        f"{path}: has more than {room} ids, but {table} has {declaration.table(table).num_embeddings} "
                        f"rows and out_of_vocabulary takes {declaration.table(table).num_embeddings - room}"
                    )
                ids.append(text)
    except (OSError, UnicodeDecodeError) as error:
        raise WeightsError(f"{path}: cannot be read as UTF-8 text: {error}") from None
    return ids

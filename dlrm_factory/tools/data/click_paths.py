"""Files and folders → files, in order."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from dlrm_factory.errors import DataError

__all__ = ["files_of"]


def files_of(paths: Sequence[Path]) -> list[Path]:
    """``paths`` with each folder replaced by the files in it and in its folders.

    Numbers within names count as numbers: ``day_2`` comes before ``day_10``. Names that begin with ``_`` or ``.`` are
    left out, as what writes such folders uses them for its own. DataError for a folder without files, or a
    file that comes twice.
    """
    files = [file for path in paths for file in (_files_in(path) if path.is_dir() else [path])]
    seen: set[Path] = set()
    for file in files:
        if file.resolve() in seen:
            raise DataError(f"{file}: is given twice; its rows would count twice")
        seen.add(file.resolve())
    return files


def _files_in(folder: Path) -> list[Path]:
    try:
        files = list(_walk(folder))
    except OSError as error:
        raise DataError(f"{folder}: cannot be read: {error.strerror}") from None
    if not files:
        raise DataError(f"{folder}: holds no file (names that begin with _ or . are left out)")
    return files


def _walk(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir(), key=_natural):
        if path.name.startswith(("_", ".")):
            continue
        if path.is_dir():
            yield from _walk(path)
        else:
            yield path


def _natural(path: Path) -> tuple[list[str | int], str]:
    # Text and numbers take turns, so that only like is compared with like.
    parts = [int(part) if i % 2 else part for i, part in enumerate(re.split(r"([0-9]+)", path.name))]
    return parts, path.name

"""How a file of clicks is laid out: by its name, or by how it begins.

Criteo's own files (the Kaggle challenge's ``train.txt`` and the 1TB logs' ``day_0``, ``day_1.gz``) have no header:
label, 13 integers, 26 hexadecimal ids, separated by tabs; an empty cell is missing.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from dlrm_factory.errors import DataError
from dlrm_factory.tools.data.file_format import FileFormat

__all__ = ["CRITEO_COLUMNS", "Layout", "layout_of"]

logger = logging.getLogger(__name__)

CRITEO_COLUMNS = ("label", *(f"I{i}" for i in range(1, 14)), *(f"C{i}" for i in range(1, 27)))

_told: set[Path] = set()  # a file may be opened several times in a run, and is told of once

_COMPRESSED = (".gz", ".bz2", ".zst")
_FIRST_BYTES = 1 << 16
_INTEGERS = re.compile(rb"(-?[0-9]*\t){13}")
_IDS = re.compile(rb"([0-9a-f]{0,16}\t){25}[0-9a-f]{0,16}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Of a text file; a Parquet file has none.

    Fields:
        delimiter: between cells.
        names: of the columns; None if the first line holds them.
        quoted: a cell in quotation marks may hold delimiters and line ends.
    """

    delimiter: str
    names: tuple[str, ...] | None = None
    quoted: bool = True


_CSV, _TSV = Layout(delimiter=","), Layout(delimiter="\t")
_CRITEO = Layout(delimiter="\t", names=CRITEO_COLUMNS, quoted=False)


def layout_of(path: Path, file_format: FileFormat) -> Layout | None:
    """None for Parquet. DataError if the file is of no known kind, cannot be read, or has no labels."""
    if file_format == "auto":
        return _guessed(path)
    if file_format == "criteo":
        _check_labelled(path, _first_line(path))
    return {"csv": _CSV, "tsv": _TSV, "criteo": _CRITEO}.get(file_format)


def _guessed(path: Path) -> Layout | None:
    name = path.name.lower()
    for compressed in _COMPRESSED:
        name = name.removesuffix(compressed)
    if name.endswith((".parquet", ".pq")):
        return None
    if name.endswith(".csv"):
        return _CSV
    line = _first_line(path)
    if _looks_criteo(line):
        if path not in _told:
            _told.add(path)
            logger.warning(
                "%s: read as Criteo's: no header; label, I1 to I13, C1 to C26 (--format says otherwise)", path
            )
        return _CRITEO
    if name.endswith(".tsv"):
        return _TSV
    if _lacks_label(line):
        _check_labelled(path, line)
    raise DataError(
        f"{path}: neither CSV nor Parquet nor Criteo's text by its name and first line; "
        "end its name in .csv, .tsv, .csv.gz or .parquet, or give --format"
    )


def _first_line(path: Path) -> bytes:
    try:
        with pa.input_stream(str(path), compression="detect") as stream:
            head: bytes = stream.read(_FIRST_BYTES)
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file") from None
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read: {' '.join(str(error).split())}") from None
    return head.split(b"\n", 1)[0].removesuffix(b"\r")


def _looks_criteo(line: bytes) -> bool:
    return line[:2] in (b"0\t", b"1\t") and _lacks_label(line[2:])


def _lacks_label(line: bytes) -> bool:
    integers = _INTEGERS.match(line)
    return integers is not None and _IDS.fullmatch(line, integers.end()) is not None


def _check_labelled(path: Path, line: bytes) -> None:
    cells = line.count(b"\t") + 1
    if cells == len(CRITEO_COLUMNS) - 1:
        raise DataError(
            f"{path}: has 39 columns, as Criteo's test files without labels; "
            "neither training nor evaluation can use them: give files with 40 columns"
        )
    if cells != len(CRITEO_COLUMNS):
        raise DataError(f"{path}: its first line has {cells} cells separated by tabs; Criteo's files have 40")

"""CSV, Criteo's and Parquet files → chunks of rows with the needed columns. A file is never in memory as a whole.

Layout of a file of clicks is told by its name, or by its beginning. Criteo's own files (the Kaggle challenge's
``train.txt`` and the 1TB logs' ``day_0``, ``day_1.gz``) have no header: label, 13 integers, 26 hexadecimal ids,
separated by tabs; an empty cell is missing.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from dlrm_factory.config.declaration import DLRMDeclaration
from dlrm_factory.config.label import label_columns
from dlrm_factory.errors import DataError, near_matches

__all__ = [
    "CRITEO_COLUMNS",
    "Chunk",
    "ClickFiles",
    "FileFormat",
    "Layout",
    "declared_columns",
    "files_of",
    "layout_of",
    "read_chunks",
    "weights_column",
]

# auto: by the file's name, else by its first line.
FileFormat = Literal["auto", "csv", "tsv", "parquet", "criteo"]

logger = logging.getLogger(__name__)
CRITEO_COLUMNS = ("label", *(f"I{i}" for i in range(1, 14)), *(f"C{i}" for i in range(1, 27)))
_reported: set[Path] = set()  # a file may be opened several times in a run, and is told of once
_COMPRESSED = (".gz", ".bz2", ".zst")
_FIRST_BYTES = 1 << 16
_INTEGERS = re.compile(rb"(-?[0-9]*\t){13}")
_IDS = re.compile(rb"([0-9a-f]{0,16}\t){25}[0-9a-f]{0,16}")
_CSV_BLOCK_BYTES = 8 << 20
_PARQUET_ROWS = 65_536


def files_of(paths: Sequence[Path]) -> list[Path]:
    """Files of ``paths``: each folder is replaced by the files in it and in its folders.

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Layout of a text file; a Parquet file has none.

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
    """Layout of the file at ``path``; None for Parquet.

    DataError if the file is of no known kind, cannot be read, or has no labels.
    """
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
        if path not in _reported:
            _reported.add(path)
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """Some rows of a file.

    Fields:
        source: the file, for errors.
        first_row: number of the first row in its file, from 1.
        columns: Arrow arrays by name, all of one length.
    """

    source: str
    first_row: int
    columns: pa.RecordBatch


def declared_columns(declaration: DLRMDeclaration) -> list[str]:
    """The columns training needs: those of the labels, the dense features, the sparse features, their weights."""
    weights = [weights_column(feature.name) for feature in declaration.sparse_features if feature.weighted]
    return [*label_columns(declaration.labels), *declaration.dense_names, *declaration.sparse_names, *weights]


def weights_column(feature: str) -> str:
    """The column with the weights of a feature's ids. No feature is called so: a name has no dot."""
    return f"{feature}.weights"


def read_chunks(paths: Sequence[Path], declaration: DLRMDeclaration) -> Iterator[Chunk]:
    """The rows of ``paths`` with the declared columns; see `ClickFiles.chunks`."""
    yield from ClickFiles(paths).chunks(declared_columns(declaration))


class ClickFiles:
    """Files of clicks in the order of reading.

    Fields:
        paths: folders are replaced by their files, see `files_of`.
    """

    def __init__(self, paths: Sequence[Path], file_format: FileFormat = "auto") -> None:
        """DataError for a file of no known kind, or that is not there."""
        self.paths = files_of(paths)
        self._layouts = [layout_of(path, file_format) for path in self.paths]

    def rows(self) -> int | None:
        """Number of rows; None if that takes reading them."""
        if any(layout is not None for layout in self._layouts):
            return None
        return sum(pyarrow.parquet.read_metadata(path).num_rows for path in self.paths)

    def column_names(self) -> list[str]:
        """Names of the first file's columns. DataError if it cannot be read."""
        return _column_names(self.paths[0], self._layouts[0])

    def check_columns(self, columns: Sequence[str]) -> None:
        """DataError unless every file has ``columns``: a mistake in the last file shows at once."""
        for path, layout in zip(self.paths, self._layouts, strict=True):
            _check_columns(path, _column_names(path, layout), columns)

    def chunks(self, columns: Sequence[str]) -> Iterator[Chunk]:
        """The rows of the files, one after another. DataError for a file that cannot be read or lacks a column."""
        self.check_columns(columns)
        for path, layout in zip(self.paths, self._layouts, strict=True):
            first_row = 1
            for batch in _batches(path, layout, list(dict.fromkeys(columns))):
                yield Chunk(source=str(path), first_row=first_row, columns=batch)
                first_row += batch.num_rows


def _batches(path: Path, layout: Layout | None, columns: list[str]) -> Iterator[pa.RecordBatch]:
    try:
        if layout is not None:
            with _open_text(path, layout, columns) as reader:
                yield from reader
        else:
            # Buffered ahead, all that was read of the file would stay in memory.
            with pyarrow.parquet.ParquetFile(path, pre_buffer=False) as file:
                yield from file.iter_batches(batch_size=_PARQUET_ROWS, columns=columns)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read: {_one_line(error)}") from None


def _column_names(path: Path, layout: Layout | None) -> list[str]:
    try:
        if layout is None:
            return list(pyarrow.parquet.read_schema(path).names)
        with _open_text(path, layout) as reader:
            return list(reader.schema.names)
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file") from None
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read: {_one_line(error)}") from None


def _check_columns(path: Path, found: list[str], needed: Sequence[str]) -> None:
    for name in needed:
        if name not in found:
            raise DataError(
                f'{path}: there is no column "{name}"{near_matches(name, found)}; the file has '
                f"{', '.join(found)}; rename the column, or the feature in the declaration"
            )
        if found.count(name) > 1:
            raise DataError(f'{path}: {found.count(name)} columns are called "{name}"; keep one')


def _open_text(path: Path, layout: Layout, columns: list[str] | None = None) -> Any:
    # All columns come as text: type inference would make floats of ids with gaps, and drop leading zeros.
    # Only an empty cell is missing: "NA" is a fine id (Namibia's country code).
    options = pyarrow.csv.ConvertOptions(
        column_types={name: pa.string() for name in columns or ()},
        include_columns=columns,
        null_values=[""],
        strings_can_be_null=True,
    )
    return pyarrow.csv.open_csv(
        path,
        read_options=pyarrow.csv.ReadOptions(block_size=_CSV_BLOCK_BYTES, column_names=layout.names),
        parse_options=pyarrow.csv.ParseOptions(
            delimiter=layout.delimiter,
            quote_char='"' if layout.quoted else False,
            newlines_in_values=layout.quoted,
        ),
        convert_options=options,
    )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())

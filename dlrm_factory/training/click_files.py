"""CSV and Parquet files → chunks of rows with the declared columns. A file is never in memory as a whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from dlrm_factory.config.declaration import DLRMDeclaration
from dlrm_factory.errors import DataError, near_matches

__all__ = ["Chunk", "declared_columns", "read_chunks", "weights_column"]

_CSV_BLOCK_BYTES = 8 << 20
_PARQUET_ROWS = 65_536
_CSV_SUFFIXES = (".csv", ".csv.gz", ".tsv", ".tsv.gz")
_PARQUET_SUFFIXES = (".parquet", ".pq")


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
    """The columns training needs: the label, the dense features, the sparse features, their weights."""
    weights = [weights_column(feature.name) for feature in declaration.sparse_features if feature.weighted]
    return [declaration.training.label, *declaration.dense_names, *declaration.sparse_names, *weights]


def weights_column(feature: str) -> str:
    """The column with the weights of a feature's ids. No feature is called so: a name has no dot."""
    return f"{feature}.weights"


def read_chunks(paths: Sequence[Path], declaration: DLRMDeclaration) -> Iterator[Chunk]:
    """The rows of ``paths``, file after file. DataError for a file that cannot be read or lacks a column.

    Every file's columns are checked before the first chunk comes: a mistake in the last file shows at once.
    """
    columns = declared_columns(declaration)
    for path in paths:
        _check_columns(path, _column_names(path), columns)
    for path in paths:
        first_row = 1
        for batch in _batches(path, columns):
            yield Chunk(source=str(path), first_row=first_row, columns=batch)
            first_row += batch.num_rows


def _batches(path: Path, columns: list[str]) -> Iterator[pa.RecordBatch]:
    try:
        if _is_csv(path):
            with _open_csv(path, columns) as reader:
                yield from reader
        else:
            with pyarrow.parquet.ParquetFile(path) as file:
                yield from file.iter_batches(batch_size=_PARQUET_ROWS, columns=columns)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read: {_one_line(error)}") from None


def _column_names(path: Path) -> list[str]:
    try:
        if _is_csv(path):
            with _open_csv(path) as reader:
                return list(reader.schema.names)
        return list(pyarrow.parquet.read_schema(path).names)
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file") from None
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read: {_one_line(error)}") from None


def _check_columns(path: Path, found: list[str], needed: list[str]) -> None:
    for name in needed:
        if name not in found:
            raise DataError(
                f'{path}: there is no column "{name}"{near_matches(name, found)}; the file has '
                f"{', '.join(found)}; rename the column, or the feature in the declaration"
            )
        if found.count(name) > 1:
            raise DataError(f'{path}: {found.count(name)} columns are called "{name}"; keep one')


def _is_csv(path: Path) -> bool:
    name = path.name.lower()
    if name.endswith(_CSV_SUFFIXES):
        return True
    if name.endswith(_PARQUET_SUFFIXES):
        return False
    raise DataError(f"{path}: neither CSV nor Parquet; end its name in .csv, .tsv, .csv.gz or .parquet")


def _open_csv(path: Path, columns: list[str] | None = None) -> Any:
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
        read_options=pyarrow.csv.ReadOptions(block_size=_CSV_BLOCK_BYTES),
        parse_options=pyarrow.csv.ParseOptions(
            delimiter="\t" if ".tsv" in path.name.lower() else ",", newlines_in_values=True
        ),
        convert_options=options,
    )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())

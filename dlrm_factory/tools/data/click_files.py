"""CSV, Criteo's and Parquet files → chunks of rows with the needed columns. A file is never in memory as a whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from dlrm_factory.config.declaration import DLRMDeclaration
from dlrm_factory.config.label import parse_label
from dlrm_factory.errors import DataError, near_matches
from dlrm_factory.tools.data.click_paths import files_of
from dlrm_factory.tools.data.file_format import FileFormat
from dlrm_factory.tools.data.file_layouts import Layout, layout_of

__all__ = ["Chunk", "ClickFiles", "declared_columns", "read_chunks", "weights_column"]

_CSV_BLOCK_BYTES = 8 << 20
_PARQUET_ROWS = 65_536


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
    label = parse_label(declaration.training.label).column
    return [label, *declaration.dense_names, *declaration.sparse_names, *weights]


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
        """How many rows there are; None if that takes reading them."""
        if any(layout is not None for layout in self._layouts):
            return None
        return sum(pyarrow.parquet.read_metadata(path).num_rows for path in self.paths)

    def column_names(self) -> list[str]:
        """Of the first file. DataError if it cannot be read."""
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

"""Rows → a CSV or Parquet file, whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from dlrm_factory.errors import DataError
from dlrm_factory.features.arrow import is_list

__all__ = ["ClickWriter", "click_writer"]


class ClickWriter(Protocol):
    """Takes rows, chunk after chunk."""

    def write(self, columns: pa.RecordBatch) -> None: ...


class _Writer:
    def __init__(self, path: Path, suffix: str, separator: str) -> None:
        self._path, self._suffix, self._separator = path, suffix, separator
        self._writer: Any = None

    def write(self, columns: pa.RecordBatch) -> None:
        if self._suffix == ".csv":
            columns = _as_text(columns, self._separator)
        if self._writer is None:
            make = pyarrow.csv.CSVWriter if self._suffix == ".csv" else pyarrow.parquet.ParquetWriter
            self._writer = make(self._path, columns.schema)
        self._writer.write(columns)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


@contextmanager
def click_writer(path: Path, separator: str) -> Iterator[ClickWriter]:
    """A writer to ``path``, which appears whole or not at all. DataError if it cannot be written.

    CSV joins the ids of a multi-valued bag with ``separator``; Parquet keeps lists.
    """
    suffix = path.suffix.lower()
    if suffix not in (".csv", ".parquet"):
        raise DataError(f"{path}: cannot be written; end its name in .csv or .parquet")
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        writer = _Writer(partial, suffix, separator)
        try:
            yield writer
        finally:
            writer.close()
        partial.replace(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error}") from None
    finally:
        partial.unlink(missing_ok=True)


def _as_text(columns: pa.RecordBatch, separator: str) -> pa.RecordBatch:
    """The columns as CSV holds them: dictionaries decoded, lists joined."""
    return pa.RecordBatch.from_arrays(
        [_plain(column, separator) for column in columns.columns], names=columns.schema.names
    )


def _plain(column: pa.Array, separator: str) -> pa.Array:
    if is_list(column.type):
        return pc.binary_join(column.cast(pa.list_(pa.string())), separator)
    if pa.types.is_dictionary(column.type):
        return column.dictionary_decode()
    return column

"""The kinds of files that hold clicks."""

from __future__ import annotations

from typing import Literal

__all__ = ["FileFormat"]

# auto: by the file's name, else by its first line.
FileFormat = Literal["auto", "csv", "tsv", "parquet", "criteo"]

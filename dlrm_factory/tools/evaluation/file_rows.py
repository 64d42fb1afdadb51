"""Files of clicks → chunks of raw rows with their splits, as the model's training split them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from dlrm_factory.config.declaration import DLRMDeclaration
from dlrm_factory.tools.data.files import FileFormat
from dlrm_factory.tools.data.progress import Observer
from dlrm_factory.tools.data.source import ClickSource
from dlrm_factory.tools.data.split import SplitChunk, split_chunks

__all__ = ["chunks_of_files"]


def chunks_of_files(
    declaration: DLRMDeclaration,
    data: Sequence[Path],
    held_out: Sequence[Path],
    *,
    rows: int | None,
    file_format: FileFormat,
    column: str | None,
    observe: Observer,
) -> Iterator[SplitChunk]:
    """The rows of ``data``; if there are files of ``held_out`` rows, only theirs: the others need not be read.

    ``column``: one to read beside those that the model needs. DataError for the first mistake; for too many, where the
    declaration allows some.
    """
    source = ClickSource(
        declaration,
        () if held_out else data,
        held_out=held_out,
        rows=rows,
        file_format=file_format,
        columns=() if column is None else (column,),
    )
    split = source.split(observe)
    ledger = source.ledger()
    yield from split_chunks(source.chunks(), split, ledger)
    ledger.close()

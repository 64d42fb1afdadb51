"""The files of one run: what is read of them, in which order, and how they are split."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

from dlrm_factory.config.declaration import DLRMDeclaration
from dlrm_factory.errors import DataError
from dlrm_factory.tools.data.bad_rows import BadRowLedger
from dlrm_factory.tools.data.click_files import Chunk, ClickFiles, declared_columns
from dlrm_factory.tools.data.file_format import FileFormat
from dlrm_factory.tools.data.progress import Observer, Progress
from dlrm_factory.tools.data.sides import FileSplit, HashSplit, Split, first_rows
from dlrm_factory.tools.data.time_split import find_time_split

__all__ = ["ClickSource"]


class ClickSource:
    """Rows of some files, and after them those of files that are held out.

    Fields:
        most_rows: there are no more than these; None if that takes reading them.
    """

    def __init__(
        self,
        declaration: DLRMDeclaration,
        paths: Sequence[Path],
        *,
        held_out: Sequence[Path],
        rows: int | None,
        file_format: FileFormat,
        columns: Sequence[str] = (),
    ) -> None:
        """``columns``: wanted beside those that training needs.

        DataError for a file that cannot be read, lacks a column or is on both sides.
        """
        self._options = declaration.training
        self._files = ClickFiles(paths, file_format)
        self._held_out = ClickFiles(held_out, file_format)
        self._rows = rows
        both = {path.resolve() for path in self._files.paths} & {
            path.resolve() for path in self._held_out.paths
        }
        if both:
            raise DataError(f"{min(both)}: is given both to train on and to hold out")
        self._columns = [*declared_columns(declaration), *columns]
        time = self._options.time_column
        self._by_time = time if self._options.split == "time" and not held_out else None
        if self._by_time is not None:
            self._columns.append(self._by_time)
        for files in (self._files, self._held_out):
            files.check_columns(self._columns)
        self.most_rows = self._most_rows()

    def chunks(self) -> Iterator[Chunk]:
        """All rows, with the columns that are needed."""
        training = first_rows(self._files.chunks(self._columns), self._rows)
        return chain(training, self._held_out.chunks(self._columns))

    def ledger(self) -> BadRowLedger:
        """For the bad rows of one pass over `chunks`."""
        return BadRowLedger(self._options.max_bad_rows, self.most_rows)

    def split(self, observe: Observer) -> Split:
        """As declared; a split by time takes a pass over that column. DataError if it cannot be found."""
        if self._held_out.paths:
            return FileSplit(
                sources=frozenset(map(str, self._held_out.paths)),
                validation=self._options.validation_share,
                seed=self._options.seed,
            )
        if self._by_time is None:
            return HashSplit.of(self._options)
        chunks = first_rows(self._files.chunks([self._by_time]), self._rows)
        return find_time_split(
            self._observed(chunks, observe),
            self._by_time,
            holdout=self._options.holdout,
            validation=self._options.validation_share,
            ledger=self.ledger(),
        )

    def _observed(self, chunks: Iterator[Chunk], observe: Observer) -> Iterator[Chunk]:
        done = 0
        for chunk in chunks:
            yield chunk
            done += chunk.columns.num_rows
            observe(Progress(stage="split", done=done, total=self.most_rows))

    def _most_rows(self) -> int | None:
        training, held_out = self._files.rows(), self._held_out.rows()
        if self._rows is not None:
            training = self._rows if training is None else min(training, self._rows)
        return None if training is None or held_out is None else training + held_out

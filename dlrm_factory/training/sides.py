"""The two sides of the data: rows that train and rows that are held out, chunk by chunk."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from dlrm_factory.config.declaration import TrainingOptions
from dlrm_factory.training.bad_rows import BadRowLedger, WrongRows
from dlrm_factory.training.click_files import Chunk
from dlrm_factory.training.split import is_held_out

__all__ = ["FileSplit", "HashSplit", "SidedChunk", "Split", "first_rows", "sided"]

Bool = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class SidedChunk:
    """Raw rows.

    Fields:
        held_out: which of them are, bool [n].
        wrong: takes down those that cannot be read; None: the first one is an error.
    """

    chunk: Chunk
    held_out: Bool
    wrong: WrongRows | None = None


class Split(Protocol):
    """Says which rows are held out."""

    def held_out(self, chunk: Chunk, first: int, wrong: WrongRows | None) -> Bool:
        """Of ``chunk``, bool [n]; its first row is number ``first`` of all the data, from 0.

        ``wrong`` takes down rows that have no side; without it the first one is a DataError.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class HashSplit:
    """By a hash of the row's number and the seed, see `is_held_out`."""

    holdout: float
    seed: int

    @classmethod
    def of(cls, options: TrainingOptions) -> HashSplit:
        return cls(holdout=options.holdout, seed=options.seed)

    def held_out(self, chunk: Chunk, first: int, wrong: WrongRows | None) -> Bool:
        numbers = np.arange(first, first + chunk.columns.num_rows, dtype=np.int64)
        return is_held_out(numbers, holdout=self.holdout, seed=self.seed)


@dataclass(frozen=True, slots=True, kw_only=True)
class FileSplit:
    """By the file: ``sources`` are held out, whole."""

    sources: frozenset[str]

    def held_out(self, chunk: Chunk, first: int, wrong: WrongRows | None) -> Bool:
        return np.full(chunk.columns.num_rows, chunk.source in self.sources)


def sided(chunks: Iterable[Chunk], split: Split, ledger: BadRowLedger | None = None) -> Iterator[SidedChunk]:
    """``chunks``, which are all the data in order, with their sides.

    ``ledger`` takes down bad rows, each chunk's by the time the next one is asked for. DataError for too many.
    """
    first = 0
    for chunk in chunks:
        wrong = None if ledger is None else ledger.chunk(chunk.columns.num_rows)
        yield SidedChunk(chunk=chunk, held_out=split.held_out(chunk, first, wrong), wrong=wrong)
        first += chunk.columns.num_rows
        if ledger is not None:
            ledger.close_chunk(wrong)


def first_rows(chunks: Iterable[Chunk], rows: int | None) -> Iterator[Chunk]:
    """The first ``rows`` rows of ``chunks``; all of them for None. Reads no chunk more than that takes."""
    left = rows
    for chunk in chunks:
        if left is None or chunk.columns.num_rows < left:
            yield chunk
            left = None if left is None else left - chunk.columns.num_rows
            continue
        yield Chunk(source=chunk.source, first_row=chunk.first_row, columns=chunk.columns.slice(0, left))
        return

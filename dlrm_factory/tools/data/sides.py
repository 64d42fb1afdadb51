"""The sides of the data: rows that train, rows for validation, and rows that are held out, chunk by chunk."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from dlrm_factory.config.declaration import TrainingOptions
from dlrm_factory.tools.data.bad_rows import BadRowLedger, WrongRows
from dlrm_factory.tools.data.click_files import Chunk
from dlrm_factory.tools.data.split import is_held_out, is_validation

__all__ = ["FileSplit", "HashSplit", "SidedChunk", "Sides", "Split", "first_rows", "sided"]

Bool = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sides:
    """Sides of n rows: ``held_out`` and ``validation``, bool [n], never both; the others train."""

    held_out: Bool
    validation: Bool

    @property
    def training(self) -> Bool:
        """Bool [n]."""
        return ~(self.held_out | self.validation)

    def take(self, kept: Bool) -> Sides:
        """Those of the rows that ``kept``, bool [n], says."""
        return Sides(held_out=self.held_out[kept], validation=self.validation[kept])

    @classmethod
    def of(cls, held_out: Bool, validation: Bool | None = None) -> Sides:
        """``validation``: which rows are if they are not held out; None: none."""
        none = np.zeros(len(held_out), dtype=np.bool_)
        return cls(held_out=held_out, validation=none if validation is None else validation & ~held_out)


@dataclass(frozen=True, slots=True, kw_only=True)
class SidedChunk:
    """Raw rows with their sides.

    Fields:
        wrong: takes down those that cannot be read; None: the first one is an error.
    """

    chunk: Chunk
    sides: Sides
    wrong: WrongRows | None = None


class Split(Protocol):
    """Says which rows are on which side."""

    def sides(self, chunk: Chunk, first: int, wrong: WrongRows | None) -> Sides:
        """Return the sides of ``chunk``; its first row is number ``first`` of all the data, from 0.

        ``wrong`` takes down rows that have no side; without it the first one is a DataError.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class HashSplit:
    """Sides by hashes of the row's number and the seed, see `is_held_out` and `is_validation`."""

    holdout: float
    validation: float
    seed: int

    @classmethod
    def of(cls, options: TrainingOptions) -> HashSplit:
        return cls(holdout=options.holdout, validation=options.validation_share, seed=options.seed)

    def sides(self, chunk: Chunk, first: int, wrong: WrongRows | None) -> Sides:
        numbers = _numbers(chunk, first)
        held_out = is_held_out(numbers, holdout=self.holdout, seed=self.seed)
        return Sides.of(held_out, is_validation(numbers, share=self.validation, seed=self.seed))


@dataclass(frozen=True, slots=True, kw_only=True)
class FileSplit:
    """Sides by the file: ``sources`` are held out, whole; validation rows are by hash."""

    sources: frozenset[str]
    validation: float
    seed: int

    def sides(self, chunk: Chunk, first: int, wrong: WrongRows | None) -> Sides:
        held_out = np.full(chunk.columns.num_rows, chunk.source in self.sources)
        return Sides.of(
            held_out, is_validation(_numbers(chunk, first), share=self.validation, seed=self.seed)
        )


def sided(chunks: Iterable[Chunk], split: Split, ledger: BadRowLedger | None = None) -> Iterator[SidedChunk]:
    """``chunks``, which are all the data in order, with their sides.

    ``ledger`` takes down bad rows, each chunk's by the time the next one is asked for. DataError for too many.
    """
    first = 0
    for chunk in chunks:
        wrong = None if ledger is None else ledger.chunk(chunk.columns.num_rows)
        yield SidedChunk(chunk=chunk, sides=split.sides(chunk, first, wrong), wrong=wrong)
        first += chunk.columns.num_rows
        if ledger is not None:
            ledger.close_chunk(wrong)


def _numbers(chunk: Chunk, first: int) -> npt.NDArray[np.int64]:
    return np.arange(first, first + chunk.columns.num_rows, dtype=np.int64)


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

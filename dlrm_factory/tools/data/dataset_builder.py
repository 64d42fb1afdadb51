"""Encoded chunks → a `ClickDataset`, in memory or, where that is too small, in files that are mapped."""

from __future__ import annotations

import logging
import math
import mmap
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil

from dlrm_factory.config.declaration import DLRMDeclaration
from dlrm_factory.config.sizes import format_bytes
from dlrm_factory.host.memory_limit import memory_limit
from dlrm_factory.tools.data.dataset import (
    BlockPages,
    ClickDataset,
    Int64,
    Scratch,
    ScratchArray,
    default_folder,
)
from dlrm_factory.tools.data.encoding import EncodedChunk
from dlrm_factory.tools.data.split import SplitMasks

__all__ = ["BuiltDataset", "DatasetBuilder", "dataset_of", "memory_for_rows"]

_SHARE = 0.3  # of all there is: the model, its optimiser and the reading of files need the rest
_AVAILABLE_SHARE = 0.8

logger = logging.getLogger(__name__)


def memory_for_rows() -> int:
    """Bytes for the rows of this process.

    30% of the machine's memory (or the container's), shared by the ranks of this host. That does not change from run
    to run, so neither does the order of training. A process of its own also keeps within 80% of what is free now; ranks
    do not, as they must all decide alike.
    """
    memory = psutil.virtual_memory()
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    most = int(_SHARE * min(memory.total, memory_limit()) / ranks)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return most
    return min(most, int(_AVAILABLE_SHARE * memory.available))


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltDataset:
    """``training``, ``validation`` and ``held_out``: row numbers of ``dataset``, int64, ascending."""

    dataset: ClickDataset
    training: Int64
    validation: Int64
    held_out: Int64


class _Column:
    """One array that grows, in memory until it is moved to a scratch file."""

    def __init__(self, dtype: npt.DTypeLike) -> None:
        self.dtype = np.dtype(dtype)
        self.parts: list[npt.NDArray[Any]] = []
        self._file: ScratchArray | None = None

    def append(self, values: npt.NDArray[Any]) -> int:
        """Returns the bytes that it took of memory."""
        if self._file is not None:
            self._file.append(values)
            return 0
        part = np.ascontiguousarray(values, dtype=self.dtype).reshape(-1)
        self.parts.append(part)
        return part.nbytes

    def move_to(self, scratch: Scratch) -> None:
        self._file = scratch.array(self.dtype)
        for i, part in enumerate(self.parts):
            self._file.append(part)
            self.parts[i] = part[:0]  # free each as soon as it is written
        self.parts = []

    def finish(self) -> tuple[npt.NDArray[Any], mmap.mmap | None]:
        if self._file is not None:
            return self._file.mapped()
        whole = np.concatenate([np.empty(0, dtype=self.dtype), *self.parts])
        self.parts = []
        return whole, None


class DatasetBuilder:
    """Takes chunk after chunk."""

    def __init__(
        self, declaration: DLRMDeclaration, *, scratch: Path | None = None, max_bytes: float = math.inf
    ) -> None:
        """
        Args:
            scratch: a folder for all rows.
            max_bytes: memory that rows may take before they go to a folder of the system.
        """
        self._declaration = declaration
        features = declaration.sparse_features
        self._labels, self._dense = _Column(np.float32), _Column(np.float32)
        self._values = [_Column(np.int32) for _ in features]
        self._ends = [_Column(np.int64) for _ in features]
        self._weights = [_Column(np.float32) if feature.weighted else None for feature in features]
        self._training, self._validation, self._held_out = (_Column(np.int64) for _ in range(3))
        self._rows = self._bytes = 0
        self._last = np.zeros(len(features), dtype=np.int64)
        for column in self._ends:
            column.append(np.zeros(1, dtype=np.int64))
        self._scratch: Scratch | None = None
        self._max_bytes = max_bytes
        if scratch is not None:
            self._move_to(Scratch(scratch))

    def add(self, chunk: EncodedChunk, masks: SplitMasks) -> None:
        """Append rows of the splits that ``masks`` say. DataError if the disk is full."""
        took = self._labels.append(chunk.labels) + self._dense.append(chunk.dense)
        for f, bags in enumerate(chunk.bags):
            ends = self._last[f] + np.cumsum(bags.lengths)
            self._last[f] += int(bags.lengths.sum())
            took += self._values[f].append(bags.values) + self._ends[f].append(ends)
            weights = self._weights[f]
            if weights is not None and bags.weights is not None:
                took += weights.append(bags.weights)
        numbers = np.arange(self._rows, self._rows + len(chunk.labels), dtype=np.int64)
        took += self._training.append(numbers[masks.training])
        took += self._validation.append(numbers[masks.validation])
        took += self._held_out.append(numbers[masks.held_out])
        self._rows += len(numbers)
        self._bytes += took
        if self._scratch is None and self._bytes > self._max_bytes:
            folder = default_folder()
            logger.warning(
                "the encoded rows take over %s of memory; they go to unnamed files in %s "
                "(--scratch names another folder)",
                format_bytes(self._max_bytes),
                folder,
            )
            self._move_to(Scratch(folder))

    def finish(self) -> BuiltDataset:
        """All rows that were added; nothing can be added any more."""
        labels, labels_map = self._labels.finish()
        dense, dense_map = self._dense.finish()
        width, outputs = len(self._declaration.dense_features), len(self._declaration.probabilities)
        values = [column.finish() for column in self._values]
        offsets = [column.finish() for column in self._ends]
        weights = [(None, None) if column is None else column.finish() for column in self._weights]
        training, training_map = self._training.finish()
        validation, validation_map = self._validation.finish()
        held_out, held_out_map = self._held_out.finish()
        pages = None
        if self._scratch is not None:
            fixed = [(labels_map, 4 * outputs), (dense_map, 4 * width)]
            fixed += [(mapping, 8) for _, mapping in offsets]
            jagged = [
                (mapping, 4, ends)
                for columns in (values, weights)
                for (_, mapping), (ends, _) in zip(columns, offsets, strict=True)
            ]
            pages = BlockPages(fixed, jagged, [training_map, validation_map, held_out_map])
        dataset = ClickDataset(
            labels=labels.reshape(self._rows, outputs),
            dense=dense.reshape(self._rows, width),
            values=tuple(array for array, _ in values),
            offsets=tuple(array for array, _ in offsets),
            weights=tuple(array for array, _ in weights),
            scratch=self._scratch,
            pages=pages,
        )
        return BuiltDataset(dataset=dataset, training=training, validation=validation, held_out=held_out)

    def close(self) -> None:
        """Give up what is not finished."""
        if self._scratch is not None:
            self._scratch.close()

    def _move_to(self, scratch: Scratch) -> None:
        self._scratch = scratch
        weights = (column for column in self._weights if column is not None)
        for column in (
            self._labels,
            self._dense,
            *self._values,
            *self._ends,
            *weights,
            self._training,
            self._validation,
            self._held_out,
        ):
            column.move_to(scratch)


def dataset_of(chunks: Iterable[EncodedChunk], declaration: DLRMDeclaration) -> ClickDataset:
    """All rows of ``chunks``, in order, in memory."""
    builder = DatasetBuilder(declaration)
    for chunk in chunks:
        builder.add(chunk, SplitMasks.of(np.zeros(len(chunk.labels), dtype=np.bool_)))
    return builder.finish().dataset

"""Lookups in mapped tables of any size that leave few pages in this process's memory.

A page that is read brings its neighbours: some kernels map all of the 2 MiB that lie together in the page cache, so
some thousand random rows count as gigabytes. Pages of a private mapping that are asked for as if to be written come
alone, as copies.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from dlrm_factory.batch import FeatureBatch, split
from dlrm_factory.config.declaration import DLRMDeclaration
from dlrm_factory.weights.table_file import PAGE, TableFile

__all__ = ["FewPages"]

_MAX_ROWS = 512  # read before pages are given back
_MAX_SAMPLES = 2048  # whose vectors are in memory at once
_MIN_BYTES = 32 << 20  # a smaller file is mapped as it is


class FewPages:
    """Bound on the pages that lookups keep: those of some hundred rows.

    For tools, which look up rows of all tables once. A server needs its most asked rows, shared with its other workers.
    """

    def __init__(self, declaration: DLRMDeclaration, file: TableFile) -> None:
        """``file`` is mapped anew: lookups that are made afterwards read the new mapping."""
        self._file = file
        self._tables = [file.tables[feature.table] for feature in declaration.sparse_features]
        self._rows = 0  # read since pages were given back
        self._bounded = file.bytes.nbytes >= _MIN_BYTES
        if self._bounded:
            file.map_privately()

    def pieces(self, batch: FeatureBatch) -> Iterator[FeatureBatch]:
        """``batch`` in pieces of few rows, each to be looked up before the next is taken. B is at least 1."""
        size = _MAX_SAMPLES
        if self._bounded:
            size = min(size, max(1, len(batch) * _MAX_ROWS // max(1, batch.values.size)))
        for piece in [batch] if size >= len(batch) else split(batch, size):
            if not self._bounded:
                yield piece
                continue
            self._rows += piece.values.size
            if self._rows > _MAX_ROWS:
                self._file.release()
                self._rows = piece.values.size
            self._file.copy_pages(self._pages(piece))
            yield piece

    def _pages(self, batch: FeatureBatch) -> npt.NDArray[np.int64]:
        """Pages of the file that the rows of ``batch`` lie in, each once, ascending."""
        found = []
        at = 0
        for table, count in zip(self._tables, batch.lengths.sum(axis=1), strict=True):
            start = table.offset + batch.values[at : at + count] * table.row_bytes
            first, last = start // PAGE, (start + table.row_bytes - 1) // PAGE
            most = (table.row_bytes - 1) // PAGE + 2  # that a row can lie in
            found.append(np.minimum(first[:, None] + np.arange(most), last[:, None]).reshape(-1))
            at += count
        return np.unique(np.concatenate(found))

"""Encoded clicks, in memory or in mapped files without a name, and batches of them in the order of an epoch."""

from __future__ import annotations

import errno
import mmap
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dlrm_factory.batch import FeatureBatch
from dlrm_factory.batch.jagged_indices import jagged_indices
from dlrm_factory.config.sizes import format_bytes
from dlrm_factory.errors import DataError

__all__ = [
    "BLOCK_ROWS",
    "WINDOW_BLOCKS",
    "BlockPages",
    "ClickDataset",
    "Scratch",
    "ScratchArray",
    "default_folder",
    "epoch_order",
    "epoch_windows",
    "slices",
]

Int64 = npt.NDArray[np.int64]

# Read together from a mapped dataset. Of 4 bytes a row that is 64 KiB, as much as Linux maps at a fault.
BLOCK_ROWS = 16_384

# 1,048,576 rows. Also how far a mapped dataset is shuffled, so results depend on it: it is no option.
WINDOW_BLOCKS = 64
_READ_AHEAD = 128 << 10  # what Linux reads for one MADV_WILLNEED, at least
Float32 = npt.NDArray[np.float32]


def epoch_order(rows: Int64, *, seed: int, epoch: int) -> Int64:
    """``rows`` shuffled anew for each epoch."""
    return np.random.default_rng([seed, epoch]).permutation(rows)


def epoch_windows(rows: Int64, *, seed: int, epoch: int, blocks: int) -> Iterator[Int64]:
    """``rows``, ascending, shuffled anew for each epoch so that few of them are needed at a time: int64 pieces.

    Row r lies in block r // `BLOCK_ROWS`. The blocks are shuffled and gathered into windows of at most ``blocks``,
    about equal in number; then the rows of each window are shuffled. With one window this is `epoch_order`.
    """
    # Where each block begins among the rows, without going through them all.
    last = int(rows[-1]) // BLOCK_ROWS if len(rows) else -1
    edges = np.searchsorted(rows, np.arange(last + 2, dtype=np.int64) * BLOCK_ROWS)
    filled = np.flatnonzero(np.diff(edges))
    starts, ends = edges[filled], edges[filled + 1]
    windows = -(-len(starts) // blocks)
    if windows <= 1:
        yield epoch_order(rows, seed=seed, epoch=epoch)
        return
    rng = np.random.default_rng([seed, epoch])
    for window in np.array_split(rng.permutation(len(starts)), windows):
        pieces = [rows[starts[block] : ends[block]] for block in np.sort(window).tolist()]
        yield rng.permutation(np.concatenate(pieces))


def default_folder() -> Path:
    """``$TMPDIR``, else ``/var/tmp``, which is on a disk where ``/tmp`` may be memory."""
    given = os.environ.get("TMPDIR")
    return Path(given) if given else Path("/var/tmp")


class Scratch:
    """Makes arrays on disk in one folder."""

    def __init__(self, folder: Path) -> None:
        """Makes the folder if need be. DataError if it cannot be written."""
        self.folder = folder
        self.bytes = 0
        self._open: list[ScratchArray] = []
        try:
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            raise DataError(
                f"{folder}: cannot be written: {error.strerror}; give --scratch another folder"
            ) from None

    def array(self, dtype: npt.DTypeLike) -> ScratchArray:
        """An empty one."""
        array = ScratchArray(self, np.dtype(dtype))
        self._open.append(array)
        return array

    def close(self) -> None:
        """Give up the arrays that are not mapped yet; the mapped ones stay."""
        for array in self._open:
            array.close()
        self._open.clear()

    def stored(
        self, parts: Iterable[npt.NDArray[Any]], dtype: npt.DTypeLike
    ) -> tuple[npt.NDArray[Any], mmap.mmap | None]:
        """``parts`` one after another, see `ScratchArray.mapped`."""
        array = self.array(dtype)
        for part in parts:
            array.append(part)
        return array.mapped()


class ScratchArray:
    """Grows at its end; then it is mapped."""

    def __init__(self, scratch: Scratch, dtype: np.dtype[Any]) -> None:
        self._scratch, self._dtype = scratch, dtype
        # Linux makes it without a name (O_TMPFILE), so nothing is left behind even by a kill.
        self._file = tempfile.TemporaryFile(dir=scratch.folder, buffering=0)  # noqa: SIM115

    def append(self, values: npt.NDArray[Any]) -> None:
        """DataError if the disk is full."""
        data = memoryview(np.ascontiguousarray(values, dtype=self._dtype).reshape(-1).view(np.uint8).data)
        while len(data):
            try:
                written = self._file.write(data)
            except OSError as error:
                raise self._failed(error) from None
            self._scratch.bytes += written
            data = data[written:]

    def mapped(self) -> tuple[npt.NDArray[Any], mmap.mmap | None]:
        """All values, and the mapping they lie in; None for an empty array. Nothing can be appended any more."""
        try:
            size = os.fstat(self._file.fileno()).st_size
            mapping = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ) if size else None
        except OSError as error:
            raise self._failed(error) from None
        self.close()
        if mapping is None:
            return np.empty(0, dtype=self._dtype), None
        return np.frombuffer(mapping, dtype=self._dtype), mapping

    def close(self) -> None:
        """Discard what was appended, unless it is mapped."""
        self._file.close()

    def _failed(self, error: OSError) -> DataError:
        folder, written = self._scratch.folder, format_bytes(self._scratch.bytes)
        self._scratch.close()
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return DataError(
                f"{folder}: is full after {written} of encoded rows; "
                "make room there, give --scratch a folder on a larger disk, or read fewer --rows"
            )
        return DataError(f"{folder}: cannot be written: {error.strerror}; give --scratch another folder")


class BlockPages:
    """Blocks in use. Only a matter of speed and memory: the arrays can be read all the same."""

    def __init__(
        self,
        fixed: Sequence[tuple[mmap.mmap | None, int]],
        jagged: Sequence[tuple[mmap.mmap | None, int, Int64]],
        others: Sequence[mmap.mmap | None],
    ) -> None:
        """
        Args:
            fixed: mappings with so many bytes a row.
            jagged: mappings with so many bytes an item, and where each row's items begin, int64 [N + 1].
            others: mappings that are read from begin to end.
        """
        self._fixed, self._jagged, self._others = fixed, jagged, others
        self._order: mmap.mmap | None = None
        self._used: set[int] = set()

    def touch(self, rows: Int64) -> None:
        """Read ahead the blocks of ``rows``, which are about to be read."""
        blocks = set(np.unique(rows // BLOCK_ROWS).tolist())
        new = blocks - self._used
        if len(self._used) + len(new) > WINDOW_BLOCKS:
            self.release()
            new = blocks
        self._used |= new
        for block in sorted(new):
            self._read_ahead(block)

    def follow(self, order: mmap.mmap | None) -> None:
        """Take ``order``, the mapping of the epoch's order, in place of an earlier one."""
        self._order = order
        self.release()

    def release(self) -> None:
        """Free what the process holds; what the page cache holds may stay there."""
        for mapping in self._mappings():
            mapping.madvise(mmap.MADV_DONTNEED)
        self._used = set()

    def _read_ahead(self, block: int) -> None:
        first, stop = block * BLOCK_ROWS, (block + 1) * BLOCK_ROWS
        for mapping, size in self._fixed:
            _will_need(mapping, first * size, stop * size)
        for mapping, size, offsets in self._jagged:
            start, end = int(offsets[first]), int(offsets[min(stop, len(offsets) - 1)])
            _will_need(mapping, start * size, end * size)

    def _mappings(self) -> Iterator[mmap.mmap]:
        columns = (*(fixed[0] for fixed in self._fixed), *(jagged[0] for jagged in self._jagged))
        for mapping in (*columns, *self._others, self._order):
            if mapping is not None:
                yield mapping


def _will_need(mapping: mmap.mmap | None, start: int, stop: int) -> None:
    if mapping is None:
        return
    start -= start % mmap.PAGESIZE
    for begin in range(start, min(stop, len(mapping)), _READ_AHEAD):
        mapping.madvise(mmap.MADV_WILLNEED, begin, min(_READ_AHEAD, len(mapping) - begin))


@dataclass(frozen=True, slots=True, kw_only=True)
class ClickDataset:
    """N encoded samples, column by column.

    Fields:
        dense: float32 [N, dense features].
        labels: float32 [N, probabilities] of 0 and 1; NaN where a row does not count for one.
        values: per sparse feature, int32 rows of its table (a table has fewer than 2**31), bag after bag.
        offsets: per sparse feature, int64 [N + 1]; bag i is values[offsets[i]:offsets[i + 1]].
        weights: per sparse feature, float32 like values; None for a feature without.
        scratch, pages: of a dataset whose arrays are mapped files.
    """

    dense: Float32
    labels: Float32
    values: tuple[npt.NDArray[np.int32], ...]
    offsets: tuple[Int64, ...]
    weights: tuple[Float32 | None, ...]
    scratch: Scratch | None = None
    pages: BlockPages | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def epoch_order(self, rows: Int64, *, seed: int, epoch: int) -> Int64:
        """The row numbers ``rows``, ascending, in the order of the epoch.

        `epoch_order`, or `epoch_windows` if the dataset is mapped; then the order is mapped, too.
        """
        if self.scratch is None or self.pages is None:
            return epoch_order(rows, seed=seed, epoch=epoch)
        windows = epoch_windows(rows, seed=seed, epoch=epoch, blocks=WINDOW_BLOCKS)
        order, mapping = self.scratch.stored(windows, np.int64)
        self.pages.follow(mapping)
        return order

    def features(self, rows: Int64) -> FeatureBatch:
        """The samples ``rows`` (int64 [B]), in that order."""
        if self.pages is not None:
            self.pages.touch(rows)
        lengths = np.empty((len(self.values), len(rows)), dtype=np.int32)
        values, weights = [], []
        for f, (ids, offsets) in enumerate(zip(self.values, self.offsets, strict=True)):
            starts = offsets[rows]
            lengths[f] = offsets[rows + 1] - starts
            places = jagged_indices(starts, lengths[f])
            values.append(ids[places])
            own = self.weights[f]
            weights.append(np.ones(len(places), dtype=np.float32) if own is None else own[places])
        is_weighted = any(own is not None for own in self.weights)
        return FeatureBatch(
            dense=self.dense[rows],
            lengths=lengths,
            values=np.concatenate(values, dtype=np.int64),
            weights=np.concatenate(weights) if is_weighted else None,
        )


def slices(rows: Int64, size: int) -> Iterator[Int64]:
    """``rows`` in consecutive pieces of ``size``; the last may be shorter."""
    for start in range(0, len(rows), size):
        yield rows[start : start + size]

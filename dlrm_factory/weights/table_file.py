"""The table file: every table's encoded rows, laid out as fbgemm's lookup reads them, to be memory-mapped.

::

    0        head (see `dlrm_factory.host.checked_file`), magic "DLRMTBL1", header
             {"tables": [{name, dtype, num_embeddings, …, offset, xxh3}, …], "size": …}
    offset   rows of a table, one after the other, `dtypes.row_bytes` each; offsets are multiples of 64

One mapping of the whole file serves every table and every plan: a lookup's offsets point at the tables (or
at the row range) its rank holds. Only column_wise shards are copied.
"""

from __future__ import annotations

import contextlib
import logging
import mmap
import warnings
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import torch
import xxhash

from dlrm_factory.config.declaration import DLRMDeclaration, Table, TableDtype
from dlrm_factory.config.sizes import format_bytes
from dlrm_factory.errors import WeightsError
from dlrm_factory.host.checked_file import FileKind, align, map_file
from dlrm_factory.model.dtypes import encode_rows, row_bytes
from dlrm_factory.weights.rows import BLOCK_ROWS, RowSource

__all__ = ["PAGE", "Progress", "StoredTable", "TableFile", "create_table_file", "write_table_file"]

Progress = Callable[[int, int], None]

logger = logging.getLogger(__name__)

PAGE = mmap.PAGESIZE
_MADV_POPULATE_WRITE = 23  # of Linux's mman.h, which Python does not name

_FLOAT = 4  # bytes
_NO_DIGEST = "0" * 16
_FITS = 0.75  # of the memory; the rest is for workers, the frontend and others
_BLOCK = (
    4 << 20
)  # bytes in memory at once, of floats to encode and of the mapping to check; a multiple of any page size


class StoredTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One table in the file. ``xxh3``: XXH3-64 of its rows in hex; all zeros if it was never computed."""

    name: str
    dtype: TableDtype
    num_embeddings: int
    embedding_dim: int
    offset: int
    xxh3: str = _NO_DIGEST

    @property
    def row_bytes(self) -> int:
        return row_bytes(self.dtype, self.embedding_dim)

    @property
    def size(self) -> int:
        """Bytes of all rows."""
        return self.num_embeddings * self.row_bytes


class _Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    tables: list[StoredTable]
    size: int


_KIND = FileKind(magic=b"DLRMTBL1", name="table file", header=_Header)


class TableFile:
    """A table file, mapped read-only. All processes that map it share its pages.

    ``held``: bytes of it that the lookups of this host read, all at first.
    """

    def __init__(self, path: Path) -> None:
        """WeightsError if ``path`` is not a whole table file."""
        self.path = path
        self._map = map_file(path, _KIND.name)
        header, self._head = _read_header(memoryview(self._map), path)
        if len(self._map) != header.size:
            raise WeightsError(
                f"{path}: has {len(self._map)} bytes but its header says {header.size}; it was cut short"
            )
        self.tables = {table.name: table for table in header.tables}
        self.held = len(self._map)
        self.bytes = _as_tensor(np.frombuffer(self._map, dtype=np.uint8))

    def check(self, declaration: DLRMDeclaration) -> None:
        """WeightsError unless the file holds just the declared tables, with their dtypes and shapes."""
        for table in declaration.tables:
            stored = self.tables.get(table.name)
            if stored is None:
                raise WeightsError(f'{self.path}: has no table "{table.name}", which is declared')
            for field in ("dtype", "num_embeddings", "embedding_dim"):
                have, want = getattr(stored, field), getattr(table, field)
                if have != want:
                    raise WeightsError(
                        f'{self.path}: table "{table.name}" has {field} {have} but {want} is declared'
                    )

    def rows(self, table: str) -> torch.Tensor:
        """The encoded rows of ``table`` in place: uint8 [num_embeddings, row_bytes]. Read-only memory."""
        stored = self.tables[table]
        return self.bytes[stored.offset : stored.offset + stored.size].view(
            stored.num_embeddings, stored.row_bytes
        )

    def prepare_lookups(self, memory: int) -> None:
        """Say how rows will be read: each alone, if ``held`` is more than most of ``memory`` bytes.

        By default the kernel reads the 128 KB around a row that is not in memory. That fills memory soonest; but
        where the rows do not fit, it pushes out what others need.
        """
        if self.held <= _FITS * memory:
            return
        with contextlib.suppress(OSError):  # advice alone
            self._map.madvise(mmap.MADV_RANDOM)
            logger.info(
                "%s: %s of tables in %s of memory, so rows are read from disk one by one",
                self.path,
                format_bytes(self.held),
                format_bytes(memory),
            )

    def map_privately(self) -> None:
        """Map the file anew, for `copy_pages`. Nobody writes to the mapping, which takes memory for copied pages only.

        Tensors that were taken before keep the old one.
        """
        self._map = map_file(self.path, _KIND.name, private=True)
        self.bytes = _as_tensor(np.frombuffer(self._map, dtype=np.uint8))

    def copy_pages(self, pages: npt.NDArray[np.int64]) -> None:
        """Copy ``pages``, ascending, of a private mapping into memory, each without its neighbours in the page cache.

        Linux before 5.14 cannot; there they are read as of any mapping.
        """
        for run in np.split(pages, np.flatnonzero(np.diff(pages) != 1) + 1):
            if len(run):
                # Advice alone; rows outside the file are for the lookup to refuse.
                with contextlib.suppress(OSError, ValueError):
                    self._map.madvise(_MADV_POPULATE_WRITE, int(run[0]) * PAGE, len(run) * PAGE)

    def release(self) -> None:
        """Give back the pages that were read or copied; they stay in the page cache."""
        with contextlib.suppress(OSError):  # advice alone
            self._map.madvise(mmap.MADV_DONTNEED)

    def verify(self, *, release: bool = False) -> None:
        """Read every row and compare checksums. WeightsError names the damaged table.

        Tables whose checksum was never computed are not read. ``release``: keep few of the pages that were read in
        this process's memory; they stay in the page cache.
        """
        data = memoryview(self._map)
        first = min((table.offset for table in self.tables.values()), default=len(data))
        self._check_padding(data[self._head : first], "its header")
        for stored in self.tables.values():
            if stored.xxh3 != _NO_DIGEST:
                self._verify(stored, data, release)

    def _verify(self, stored: StoredTable, data: memoryview, release: bool) -> None:
        end = stored.offset + stored.size
        digest = xxhash.xxh3_64()
        for start in range(stored.offset // _BLOCK * _BLOCK, end, _BLOCK):
            stop = min(start + _BLOCK, end)
            digest.update(data[max(start, stored.offset) : stop])
            if release:
                with contextlib.suppress(OSError):  # advice alone
                    self._map.madvise(mmap.MADV_DONTNEED, start, stop - start)
        found = digest.hexdigest()
        if found != stored.xxh3:
            raise WeightsError(
                f'{self.path}: table "{stored.name}" is damaged (checksum {found}, not {stored.xxh3}); '
                "make the archive again from its checkpoint"
            )
        self._check_padding(data[end : align(end)], f'table "{stored.name}"')

    def _check_padding(self, padding: memoryview, before: str) -> None:
        if any(padding):
            raise WeightsError(
                f"{self.path}: the bytes after {before} are not zero, so it is damaged; make the archive again from "
                "its checkpoint"
            )


def create_table_file(path: Path, tables: list[Table]) -> dict[str, StoredTable]:
    """A table file with every row zero, sparse on disk: it takes room only where rows are written later.

    Returns where each table lies. For files that are filled in place, without checksums.
    """
    header = _lay_out(tables)
    with path.open("wb") as file:
        file.write(_KIND.encode(header))
        file.truncate(header.size)
    return {table.name: table for table in header.tables}


def write_table_file(
    path: Path, declaration: DLRMDeclaration, source: RowSource, *, progress: Progress | None = None
) -> None:
    """Encode every declared table from ``source`` into ``path``, a block of rows at a time."""
    header = _lay_out(declaration.tables)
    total, done, written = sum(table.size for table in header.tables), 0, []
    with path.open("wb") as file:
        for table in header.tables:
            file.seek(table.offset)
            digest = xxhash.xxh3_64()
            rows = min(BLOCK_ROWS, max(1, _BLOCK // (_FLOAT * table.embedding_dim)))
            for start in range(0, table.num_embeddings, rows):
                stop = min(start + rows, table.num_embeddings)
                block = encode_rows(source.table_rows(table.name, start, stop), table.dtype).numpy()
                digest.update(block.data)
                file.write(block.data)
                done += block.nbytes
                if progress:
                    progress(done, total)
            written.append(msgspec.structs.replace(table, xxh3=digest.hexdigest()))
        file.truncate(header.size)
        file.seek(0)
        file.write(_KIND.encode(_Header(tables=written, size=header.size)))


def _lay_out(tables: list[Table]) -> _Header:
    def stored(table: Table, offset: int) -> StoredTable:
        return StoredTable(table.name, table.dtype, table.num_embeddings, table.embedding_dim, offset)

    # Offsets move the header's length only by their digits, so lay out with the widest ones first.
    widest = _Header([stored(table, 2**62) for table in tables], 2**62)
    offset = align(len(_KIND.encode(widest)))
    placed = []
    for table in tables:
        placed.append(stored(table, offset))
        offset = align(offset + placed[-1].size)
    return _Header(placed, offset)


def _read_header(data: memoryview, path: Path) -> tuple[_Header, int]:
    """The header, and where it ends."""
    header, end = _KIND.decode(data, str(path))
    # One after the other, each at the next multiple of 64: a stranger's file cannot place a table elsewhere. The
    # first may leave room, since a header is laid out before its numbers are known.
    head, most = end, align(end) + 64 * (len(header.tables) + 1)
    for table in header.tables:
        if (
            table.num_embeddings < 1
            or table.embedding_dim < 4
            or not align(end) <= table.offset <= most
            or table.offset % 64
            or table.offset + table.size > header.size
        ):
            raise WeightsError(f'{path}: its header places table "{table.name}" outside the file')
        end = table.offset + table.size
        most = align(end)
    if header.tables and header.size != align(end):
        raise WeightsError(f"{path}: its header says {header.size} bytes, but its tables end at {align(end)}")
    return header, head


def _as_tensor(array: np.ndarray) -> torch.Tensor:
    with warnings.catch_warnings():
        # The memory is read-only on purpose: torch warns that writing to it would fault.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)

"""Vocabularies: ids of every table with ``ids: vocabulary`` → rows, in one file that all workers map.

::

    head       see `dlrm_factory.host.checked_file`; magic "DLRMVOC1"
    keys       uint64 [N], sorted: H(id) xor the table's salt, see `dlrm_factory.features.ids`
    entries    uint32 [N], the entry of each key; a table's entries follow each other, in the order of its rows
    buckets    uint32 [2**bits + 1], where the keys begin whose first ``bits`` bits are 0, 1, 2, …
    offsets    uint32 or uint64 [N + 1], where each entry's text begins; only if there is any text
    texts      UTF-8, each text ended by a NUL; nothing for an integer

Each part begins at a multiple of 64 bytes. One index for all tables, so that a batch is looked up at once:
NumPy's price is by the call. H is one to one on integers, and texts are compared byte by byte, so two ids
never share a row, whatever their hashes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt
import xxhash

from dlrm_factory.config import DLRMDeclaration
from dlrm_factory.errors import WeightsError
from dlrm_factory.features.ids import hash_keys, mix_int64, unmix_int64
from dlrm_factory.features.text_column import TextColumn
from dlrm_factory.host.checked_file import FileKind, align, map_file

__all__ = ["KIND", "Layout", "StoredVocabulary", "Vocabularies", "VocabularyHeader", "bucket_of", "salts"]

Int64 = npt.NDArray[np.int64]
UInt64 = npt.NDArray[np.uint64]

_BLOCK = 1 << 20


class StoredVocabulary(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A table and how many ids it has rows for: rows 0, 1, …, ``entries`` - 1."""

    table: str
    entries: int


class Layout(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The sizes that say where each part lies. ``text_bytes``: 0 if all ids are integers."""

    entries: int
    bits: int
    text_bytes: int

    @property
    def offset_dtype(self) -> Literal["<u4", "<u8"]:
        return "<u4" if self.text_bytes < 2**32 else "<u8"

    def parts(self) -> dict[str, tuple[str, int]]:
        """dtype and length of each part, in the order of the file."""
        parts = {
            "keys": ("<u8", self.entries),
            "entries": ("<u4", self.entries),
            "buckets": ("<u4", 2**self.bits + 1),
        }
        if self.text_bytes:
            parts["offsets"] = (self.offset_dtype, self.entries + 1)
            parts["texts"] = ("|u1", self.text_bytes)
        return parts

    def spans(self, start: int) -> tuple[dict[str, int], int]:
        """Offset of each part in a file whose head ends at ``start``, and the file's size."""
        begins, offset = {}, align(start)
        for name, (dtype, length) in self.parts().items():
            begins[name] = offset
            offset = align(offset + np.dtype(dtype).itemsize * length)
        return begins, offset


class VocabularyHeader(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``xxh3``: XXH3-64, in hex, of all after the head."""

    tables: list[StoredVocabulary]
    layout: Layout
    xxh3: str


KIND = FileKind(magic=b"DLRMVOC1", name="vocabulary file", header=VocabularyHeader)


class Vocabularies:
    """The vocabularies of a model. Lookups are array operations over memory that may be mapped."""

    def __init__(
        self, data: bytes | memoryview, source: str = "vocabularies", *, verify: bool = True
    ) -> None:
        """WeightsError if ``data`` is not a whole vocabulary file. ``verify``: call `verify` too."""
        self.data = memoryview(data)
        header, end = KIND.decode(self.data, source)
        begins, size = _checked_spans(header, end, len(self.data), source)
        self._head, self._digest, self._begins = end, header.xxh3, begins
        parts = {
            name: np.frombuffer(self.data, dtype=dtype, count=length, offset=begins[name])
            for name, (dtype, length) in header.layout.parts().items()
        }
        self.source = source
        self.sizes = {stored.table: stored.entries for stored in header.tables}
        self._ends = np.cumsum([0, *self.sizes.values()], dtype=np.int64)
        self._salts = salts(len(self.sizes))
        self._bits, self._text_bytes = header.layout.bits, header.layout.text_bytes
        self._keys, self._entries, self._buckets = parts["keys"], parts["entries"], parts["buckets"]
        self._texts, self._offsets = None, parts.get("offsets")
        if header.layout.text_bytes:
            self._texts = TextColumn(parts["texts"], parts["offsets"][:-1], parts["offsets"][1:])
        assert size == len(self.data)
        if verify:
            self.verify()

    @classmethod
    def map(cls, path: Path, *, verify: bool = True) -> Vocabularies:
        """The vocabularies in the file at ``path``; all processes that map it share its pages."""
        return cls(memoryview(map_file(path, KIND.name)), str(path), verify=verify)

    def verify(self) -> None:
        """Read every byte and compare the checksum. WeightsError if it is another, or the parts do not fit together."""
        start = align(self._head)
        if any(self.data[self._head : start]) or xxhash.xxh3_64_hexdigest(self.data[start:]) != self._digest:
            raise WeightsError(f"{self.source}: is damaged (wrong checksum); make the archive again")
        # A stranger's file may have a right checksum over parts that lead a lookup astray.
        buckets, entries = self._buckets, self._entries
        ordered = int(buckets[0]) == 0 and int(buckets[-1]) == len(entries) and _never_falls(buckets)
        within = len(entries) == 0 or int(entries.max()) < len(entries)
        if not (ordered and within and self._texts_fit()):
            raise WeightsError(f"{self.source}: its index is not of this format; make the archive again")

    def _texts_fit(self) -> bool:
        offsets = self._offsets
        return offsets is None or (_never_falls(offsets) and int(offsets[-1]) <= self._text_bytes)

    def check(self, declaration: DLRMDeclaration) -> None:
        """WeightsError unless these are the declared tables' vocabularies, and their ids have rows there."""
        wanted = declaration.vocabulary_tables
        if list(self.sizes) != wanted:
            raise WeightsError(
                f"{self.source}: has vocabularies of {', '.join(self.sizes) or 'no table'}, "
                f"but {', '.join(wanted) or 'none'} declared"
            )
        for table, entries in self.sizes.items():
            if entries > declaration.vocabulary_room(table):
                raise WeightsError(
                    f'{self.source}: table "{table}" has rows for {declaration.vocabulary_room(table)} ids, '
                    f"but the vocabulary has {entries}"
                )

    def ids_of(self, table: str, rows: Sequence[int]) -> list[int | str]:
        """The ids of ``rows`` of ``table``, which are below its `sizes`. Reads the whole index: not for requests."""
        at = list(self.sizes).index(table)
        wanted = np.array(rows, dtype=np.int64) + self._ends[at]
        places = np.flatnonzero(np.isin(self._entries, wanted))
        place_of = dict(zip(self._entries[places].tolist(), places.tolist(), strict=True))
        return [self._id(entry, place_of[entry], at) for entry in wanted.tolist()]

    def _id(self, entry: int, place: int, table: int) -> int | str:
        if self._offsets is not None and self._offsets[entry] < self._offsets[entry + 1]:
            start = self._begins["texts"] + int(self._offsets[entry])
            stop = self._begins["texts"] + int(self._offsets[entry + 1]) - 1  # without its NUL
            return bytes(self.data[start:stop]).decode()
        return int(unmix_int64((self._keys[place] ^ self._salts[table])[None])[0])

    def rows(self, ids: Sequence[int | str] | Int64, tables: Int64) -> Int64:
        """Rows of ``ids``, -1 for an unknown one: int64 [len(ids)].

        ``tables``: int64 [len(ids)], the place of each id's table among `sizes`.
        OverflowError for an integer outside int64, UnicodeEncodeError for half a surrogate pair.
        """
        if isinstance(ids, np.ndarray):
            return self.find(mix_int64(ids), None, tables)
        textual = str in set(map(type, ids))
        return self.find(hash_keys(ids), TextColumn.of(ids) if textual else None, tables)

    def find(self, hashes: UInt64, texts: TextColumn | None, tables: Int64) -> Int64:
        """Rows, as `rows` gives them, of ids already hashed. ``texts``: None if all are integers."""
        keys = hashes ^ self._salts[tables]
        bucket = bucket_of(keys, self._bits)
        at, stop = self._buckets[bucket].astype(np.int64), self._buckets[bucket + 1].astype(np.int64)
        rows = np.full(len(keys), -1, dtype=np.int64)
        left = np.flatnonzero(at < stop)
        while len(left):
            place = at[left]
            equal = np.flatnonzero(self._keys[place] == keys[left])
            found = left[equal]
            entry = self._entries[place[equal]].astype(np.int64)
            same = self._same(entry, texts, found, tables[found])
            rows[found[same]] = (entry - self._ends[tables[found]])[same]
            at[left] += 1
            left = left[(rows[left] < 0) & (at[left] < stop[left])]
        return rows

    def _same(
        self, entry: Int64, texts: TextColumn | None, asked: Int64, tables: Int64
    ) -> npt.NDArray[np.bool_]:
        """Test whether each entry is the id asked for, given that their keys are equal."""
        same = (self._ends[tables] <= entry) & (entry < self._ends[tables + 1])
        if self._texts is not None and texts is not None:
            return same & self._texts.equal(entry, texts, asked)
        if self._texts is not None:
            return same & (self._texts.lengths(entry) == 0)
        return same if texts is None else same & (texts.lengths(asked) == 0)


def _never_falls(numbers: npt.NDArray[np.unsignedinteger]) -> bool:
    """Test whether each is at least the one before, a block at a time: a table has up to a billion."""
    blocks = (numbers[start : start + _BLOCK + 1] for start in range(0, len(numbers), _BLOCK))
    return all(bool((block[1:] >= block[:-1]).all()) for block in blocks)


def salts(tables: int) -> UInt64:
    """Numbers mixed into each table's keys, so that one id has different keys in different tables."""
    return mix_int64(np.arange(tables, dtype=np.int64))


def bucket_of(keys: UInt64, bits: int) -> Int64:
    """The first ``bits`` bits of each key."""
    return (keys >> np.uint64(64 - bits)).astype(np.int64)


def _checked_spans(header: VocabularyHeader, end: int, size: int, source: str) -> tuple[dict[str, int], int]:
    layout = header.layout
    total = sum(stored.entries for stored in header.tables)
    sane = layout.entries == total < 2**32 and 1 <= layout.bits <= 32 and layout.text_bytes >= 0
    if not sane or any(stored.entries < 0 for stored in header.tables):
        raise WeightsError(f"{source}: its header is not of this format; make the archive again")
    begins, wanted = layout.spans(end)
    if size != wanted:
        raise WeightsError(f"{source}: has {size} bytes but its header says {wanted}; it was cut short")
    return begins, wanted

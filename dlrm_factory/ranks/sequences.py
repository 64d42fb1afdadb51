"""Vectors of sequence features in a group: one an id, each sent once, by the rank that has its row.

A message is as long as its content, and both ends know how long: the rank that looks up has the lengths of all rows'
bags; the one that scores has those of its own rows and, where a table is cut by rows, which part has each id's row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from dlrm_factory.batch import Embeddings
from dlrm_factory.compiled.nbit_lookup import NBitLookup
from dlrm_factory.config.declaration import DLRMDeclaration, Table
from dlrm_factory.ranks.layout import Layout
from dlrm_factory.ranks.lookup import Shard, Shards
from dlrm_factory.ranks.parcels import Bags, Part

__all__ = ["RankSequences", "SequencesUnderWay"]

Ints = npt.NDArray[np.integer[Any]]


class _Block(NamedTuple):
    """Columns [column, column + columns) of a sequence, of the ids whose rows ``part`` of its table has."""

    sequence: int
    part: int
    column: int
    columns: int

    def ids(self, counts: Sequence[Ints]) -> int:
        """``counts``: of each sequence's ids in each part."""
        return int(counts[self.sequence][self.part])


class _Sequence(NamedTuple):
    """A declared sequence feature in a layout.

    Fields:
        parts: that its table is cut into; 0 if no row has ids of it.
        replicated: place among replicated features; None if the ranks have it apart.
        apart: place among lengths that come apart from their ids.
        lookup: of a replicated table.
    """

    parts: int
    replicated: int | None
    apart: int | None
    lookup: NBitLookup | None


class RankSequences:
    """Sequence features of one rank, under one layout."""

    def __init__(
        self,
        shards: Shards,
        layout: Layout,
        features: Sequence[int],
        rank: int,
        declaration: DLRMDeclaration,
        device: torch.device,
    ) -> None:
        """``features``: of the declaration, that the layout is of."""
        self.rank, self.device = rank, device
        self.columns = [part.columns for part in layout.ranks]
        self.tables = [declaration.table(feature.table) for feature in declaration.sequence_features]
        self.max_lengths = [feature.max_length for feature in declaration.sequence_features]
        placed = {declaration.sparse_features[f].name: place for place, f in enumerate(features)}
        places = [placed.get(feature.name) for feature in declaration.sequence_features]
        self.sequences = [
            _sequence_of(layout, place, shards, table)
            for place, table in zip(places, self.tables, strict=True)
        ]
        part = layout.ranks[rank]
        self.streams = [block.stream for block in part.sequences]
        self.lookups = [
            _lookup(
                shards[b.table, part.streams[b.stream].start, b.column], declaration.table(b.table), b.columns
            )
            for b in part.sequences
        ]
        parts = {feature: layout.parts_of(feature) for feature in layout.sequences}
        self.blocks = [
            [
                _Block(
                    places.index(b.feature),
                    parts[b.feature].index(each.streams[b.stream].start),
                    b.column,
                    b.columns,
                )
                for b in each.sequences
            ]
            for each in layout.ranks
        ]

    def begin(self, part: Part, dtype: torch.dtype) -> SequencesUnderWay:
        """The vectors of ``part``, before they are looked up. ``dtype``: that they cross in."""
        return SequencesUnderWay(self, part, dtype)


@dataclass(frozen=True)
class _Own:
    """Sequences of the own rows.

    Fields:
        lengths: of each, int64 [rows].
        counts: of each, the ids in each part of its table.
        holders: of each, the part that has each id's row; None if there is one part.
    """

    lengths: list[npt.NDArray[np.int64]]
    counts: list[Ints]
    holders: list[Ints | None]


class SequencesUnderWay:
    """Sequences' vectors of one part: looked up, sent with the pooled ones, received, and padded.

    A block's vectors are [ids, columns], the ids of the first rank's slice first, then of the second's, and so on.
    """

    def __init__(self, rank: RankSequences, part: Part, dtype: torch.dtype) -> None:
        self._of, self._part, self._dtype = rank, part, dtype
        self._own = _own_of(rank.sequences, part, part.rows[rank.rank])
        self._bounds = list(_bounds(rank.streams, part))
        self._pooled = torch.empty(0)
        self._vectors: list[torch.Tensor] = []
        self._replicated: dict[int, torch.Tensor] = {}

    def look_up(self) -> None:
        """Read the rows of the ids that this rank was sent."""
        lookups = zip(self._bounds, self._of.lookups, strict=True)
        sharded = self._part.sharded
        self._vectors = [_read(lookup, sharded, b[0], b[-1], self._dtype) for b, lookup in lookups]

    def give_up(self) -> None:
        """Take vectors of NaN, as many as were to be looked up."""
        blocks = zip(self._bounds, self._of.blocks[self._of.rank], strict=True)
        self._vectors = [
            torch.full((b[-1] - b[0], block.columns), torch.nan, dtype=self._dtype, device=self._of.device)
            for b, block in blocks
        ]

    def look_up_replicated(self) -> None:
        """Read the rows of the own samples' ids in replicated tables."""
        lengths = self._part.on_host.replicated if self._part.on_host else None
        for place, sequence in enumerate(self._of.sequences):
            if sequence.lookup is None or sequence.replicated is None:
                continue
            rows = len(self._own.lengths[place])
            first = (
                sequence.replicated * rows if lengths is None else int(lengths[: sequence.replicated].sum())
            )
            stop = first + int(self._own.lengths[place].sum())
            bags = self._part.replicated
            self._replicated[place] = _read(sequence.lookup, bags, first, stop, torch.float32)

    def pack(self, pooled: torch.Tensor) -> list[torch.Tensor]:
        """What each rank is sent, flat: its rows of ``pooled``, then its ids' vectors, block after block."""
        self._pooled = pooled
        found = []
        for peer, rows in enumerate(pooled.split(self._part.rows)):
            pieces = [rows, *self._of_slice(peer)] if peer != self._of.rank and len(rows) else []
            flat = [piece.reshape(-1) for piece in pieces]
            found.append(torch.cat(flat) if flat else pooled.new_empty(0))
        return found

    def sizes(self) -> list[int]:
        """Numbers that each rank sends this one."""
        rows, counts = self._part.rows[self._of.rank], self._own.counts
        sizes = [
            rows * columns + sum(block.ids(counts) * block.columns for block in blocks)
            for columns, blocks in zip(self._of.columns, self._of.blocks, strict=True)
        ]
        sizes[self._of.rank] = 0
        return sizes

    def pooled(self, received: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Pooled vectors that each rank gives of the own rows, [own rows, columns], of the flat ``received``."""
        rows = self._part.rows[self._of.rank]
        found = [
            flat[: rows * columns].view(rows, columns) if peer != self._of.rank else None
            for peer, (flat, columns) in enumerate(zip(received, self._of.columns, strict=True))
        ]
        own = self._pooled.split(self._part.rows)[self._of.rank]
        return [own if each is None else each for each in found]

    def embeddings(self, pooled: torch.Tensor, received: Sequence[torch.Tensor]) -> Embeddings:
        """The own rows' embeddings, of ``pooled`` [own rows, W] and the flat ``received``."""
        longest: dict[int, int] = {}
        for group, lengths in zip(self._of.max_lengths, self._own.lengths, strict=True):
            longest[group] = max(longest.get(group, 1), int(lengths.max(initial=0)))
        padded = []
        for group, lengths, table in zip(
            self._of.max_lengths, self._own.lengths, self._of.tables, strict=True
        ):
            size = (len(lengths), longest[group], table.embedding_dim)
            padded.append(torch.zeros(size, device=self._of.device))
        steps = [  # where each id's vector goes
            np.flatnonzero(np.arange(each.shape[1]) < lengths[:, None])
            for each, lengths in zip(padded, self._own.lengths, strict=True)
        ]
        for place, vectors in self._replicated.items():
            self._put(vectors, padded[place].flatten(0, 1), steps[place])
        for block, vectors in self._blocks_of(received):
            holders, at = self._own.holders[block.sequence], steps[block.sequence]
            target = padded[block.sequence].flatten(0, 1).narrow(1, block.column, block.columns)
            self._put(vectors, target, at if holders is None else at[holders == block.part])
        counts = [torch.from_numpy(each).to(self._of.device) for each in self._own.lengths]
        return Embeddings(pooled, padded, counts)

    def _put(self, vectors: torch.Tensor, target: torch.Tensor, rows: Ints) -> None:
        target.index_copy_(0, torch.from_numpy(rows).to(target.device), vectors.to(target.dtype))

    def _of_slice(self, rank: int) -> list[torch.Tensor]:
        """Vectors that a rank's rows have of the own blocks."""
        blocks = zip(self._vectors, self._bounds, strict=True)
        return [vectors[b[rank] - b[0] : b[rank + 1] - b[0]] for vectors, b in blocks]

    def _blocks_of(self, received: Sequence[torch.Tensor]) -> Iterator[tuple[_Block, torch.Tensor]]:
        """Each rank's blocks with their vectors of the own rows' ids."""
        rows, counts = self._part.rows[self._of.rank], self._own.counts
        for peer, (flat, blocks) in enumerate(zip(received, self._of.blocks, strict=True)):
            if peer == self._of.rank:
                yield from zip(blocks, self._of_slice(peer), strict=True)
                continue
            start = rows * self._of.columns[peer]
            for block in blocks:
                stop = start + block.ids(counts) * block.columns
                yield block, flat[start:stop].view(-1, block.columns)
                start = stop


def _sequence_of(layout: Layout, feature: int | None, shards: Shards, table: Table) -> _Sequence:
    """``feature``: in the layout; None if it is not there."""
    if feature is None:
        return _Sequence(0, None, None, None)
    if feature in layout.replicated:
        lookup = _lookup(shards[table.name, 0, 0], table, table.embedding_dim)
        return _Sequence(1, layout.replicated.index(feature), None, lookup)
    return _Sequence(len(layout.parts_of(feature)), None, layout.lengths_apart.index(feature), None)


def _own_of(sequences: Sequence[_Sequence], part: Part, rows: int) -> _Own:
    """Sequences of a part's own rows, ``rows`` of them."""
    own = _Own([], [], [])
    on_host, start = part.on_host, 0
    assert on_host is not None
    for sequence in sequences:
        if not sequence.parts:
            lengths = np.zeros(rows, dtype=np.int64)
        elif sequence.replicated is not None:
            lengths = _lengths_at(on_host.replicated, sequence.replicated, rows)
        else:
            assert sequence.apart is not None
            lengths = _lengths_at(on_host.apart, sequence.apart, rows)
        steps, holders = int(lengths.sum()), None
        counts: Ints = np.array([steps])
        if sequence.parts > 1:
            holders = on_host.holders[start : start + steps]
            counts = np.bincount(holders, minlength=sequence.parts)
            start += steps
        own.lengths.append(lengths)
        own.counts.append(counts)
        own.holders.append(holders)
    return own


def _lengths_at(lengths: Ints | None, place: int, rows: int) -> npt.NDArray[np.int64]:
    return np.ones(rows, dtype=np.int64) if lengths is None else lengths[place].astype(np.int64)


def _bounds(streams: Sequence[int], part: Part) -> Iterator[list[int]]:
    """Of each of some streams, the place of the first id of each rank's slice, and the end."""
    assert part.on_host is not None
    edges, rows, lengths = np.cumsum([0, *part.rows]), sum(part.rows), part.on_host.sharded
    ends = None
    if lengths is not None:
        ends = np.zeros(lengths.size + 1, dtype=np.int64)
        np.cumsum(lengths.reshape(-1), dtype=np.int64, out=ends[1:])
    for stream in streams:
        bags = stream * rows + edges
        yield (bags if ends is None else ends[bags]).tolist()


def _lookup(shard: Shard, table: Table, columns: int) -> NBitLookup:
    return NBitLookup(
        shard.memory,
        places=[shard.place],
        dtypes=[table.dtype],
        columns=[columns],
        row_alignment=shard.row_alignment,
    )


def _read(lookup: NBitLookup, bags: Bags, start: int, stop: int, dtype: torch.dtype) -> torch.Tensor:
    """Rows of ids [start, stop), each a bag of its own: [ids, columns]."""
    ids = bags.values[start:stop]
    if not len(ids):
        return torch.empty(0, lookup.columns, dtype=dtype, device=ids.device)
    offsets = torch.arange(len(ids) + 1, dtype=torch.int32, device=ids.device)
    return lookup(ids, offsets, None, dtype)

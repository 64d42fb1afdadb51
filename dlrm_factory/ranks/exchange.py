"""Vectors on their way from the ranks that hold the rows to those that score the samples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple, TypeAlias

import torch
import torch.distributed as dist

from dlrm_factory.config.declaration import DLRMDeclaration
from dlrm_factory.ranks.group import RankGroup
from dlrm_factory.ranks.layout import Layout

_ByPeer: TypeAlias = list[tuple[int, torch.Tensor]]

_MAX_SPARE = 1 << 22  # numbers; long sequences fill tens of megabytes

__all__ = ["Assembly", "Exchange", "Flight", "pooled_dims"]


@dataclass(frozen=True)
class Flight:
    """An exchange under way.

    Fields:
        received: the own rows' vectors, of each rank: [own rows, that rank's columns], or flat; there once it was
            waited for.
        sent: kept until then, at least one.
        works: of torch.distributed.
    """

    received: list[torch.Tensor]
    sent: Sequence[torch.Tensor]
    works: list[dist.Work]


class Exchange:
    """One message from each rank to each other, for all tables: point to point, over gloo or NCCL.

    gloo's all-to-all copies more and waits in threads of its own: it takes twice as long. For one thread at a time.
    Four exchanges may be under way; a fifth overwrites what the first has received.
    """

    def __init__(self, group: RankGroup, device: torch.device) -> None:
        self._group = group
        self._rooms = [torch.empty(0) for _ in range(4)]
        if device.type == "cuda":
            # NCCL wants all ranks in a group's first call, and a rank without tables may have nothing to send.
            dist.all_reduce(torch.zeros(1, device=device), group=group.exchange)

    def start(self, pooled: torch.Tensor, rows: Sequence[int], columns: Sequence[int]) -> Flight:
        """Send each rank its rows of ``pooled``, [sum of rows, own columns].

        ``rows``: of each rank's slice. ``columns``: that each rank sends.
        """
        rank = self._group.rank
        parts = list(pooled.split(list(rows)))
        places = self._receive_into([rows[rank] * each for each in columns], pooled)
        received = [place.view(rows[rank], each) for place, each in zip(places, columns, strict=True)]
        received[rank] = parts[rank]
        return self._start(parts, received)

    def start_flat(self, parts: list[torch.Tensor], sizes: Sequence[int]) -> Flight:
        """Send each rank its ``parts``, flat. ``sizes``: numbers that each rank sends. Both have nothing for itself."""
        received = list(self._receive_into(sizes, parts[self._group.rank]))
        return self._start(parts, received)

    def _start(self, parts: list[torch.Tensor], received: list[torch.Tensor]) -> Flight:
        incoming = [(peer, received[peer]) for peer in self._peers() if received[peer].numel()]
        outgoing = [(peer, parts[peer]) for peer in self._peers() if parts[peer].numel()]
        works = self._cross(incoming, outgoing) if incoming or outgoing else []
        return Flight(received, parts, works)

    def _cross(self, incoming: _ByPeer, outgoing: _ByPeer) -> list[dist.Work]:
        group = self._group.exchange
        if (incoming + outgoing)[0][1].is_cuda:
            # NCCL must know of both directions at once, or two ranks that send wait for one another.
            operations = [
                dist.P2POp(dist.irecv, part, group=group, group_peer=peer) for peer, part in incoming
            ]
            operations += [
                dist.P2POp(dist.isend, part, group=group, group_peer=peer) for peer, part in outgoing
            ]
            return dist.batch_isend_irecv(operations)
        works = [group.recv([part], peer, 0) for peer, part in incoming]
        return works + [group.send([part], peer, 0) for peer, part in outgoing]

    def wait(self, flight: Flight) -> None:
        """Raises what torch.distributed raises when a rank is gone or late. On CUDA the stream waits, not the host."""
        for work in flight.works:
            # NCCL has its deadline from the group; one given here would make the host wait.
            work.wait() if flight.sent[0].is_cuda else work.wait(self._group.deadline)

    def _peers(self) -> Iterator[int]:
        """The other ranks, the next one first, so that not all send to one."""
        size = self._group.size
        return ((self._group.rank + step) % size for step in range(1, size))

    def _receive_into(self, sizes: Sequence[int], like: torch.Tensor) -> Sequence[torch.Tensor]:
        needed = sum(sizes)
        room = self._rooms.pop(0)
        if room.numel() < needed or room.dtype is not like.dtype:
            spare = min(needed, _MAX_SPARE)
            room = torch.empty(needed + spare, dtype=like.dtype, device=like.device)
        self._rooms.append(room)
        return room[:needed].split(list(sizes))


class Assembly:
    """Pooled vectors of all ranks' blocks → those of the features, partial sums added."""

    def __init__(self, layout: Layout, features: Sequence[int], declaration: DLRMDeclaration) -> None:
        """``features``: of the declaration, that the layout is of; the others' vectors are zeros."""
        dims = pooled_dims(declaration)
        first = [0, *accumulate(dims)]  # column of each feature
        self._columns = first[-1]
        found: dict[int, list[_Piece]] = {}
        for rank, part in enumerate(layout.ranks):
            start = 0
            for block in part.blocks:
                piece = _Piece(rank, start, block.columns)
                found.setdefault(first[features[block.feature]] + block.column, []).append(piece)
                start += block.columns
        start = 0
        for feature in (each for each in layout.replicated if each not in layout.sequences):
            dim = dims[features[feature]]
            found[first[features[feature]]] = [_Piece(len(layout.ranks), start, dim)]
            start += dim
        # Copied in one pass, whole runs of columns at a time.
        self._first = list(_runs((column, found[column][0]) for column in sorted(found)))
        self._is_whole = len(features) == len(declaration.sparse_features) and bool(self._first)
        self._partial = [(column, piece) for column, pieces in found.items() for piece in pieces[1:]]

    def __call__(self, received: Sequence[torch.Tensor], replicated: torch.Tensor) -> torch.Tensor:
        """[rows, W], features in declared order, of [rows, columns] of each rank and of the replicated features."""
        sources = [*received, replicated]
        if self._is_whole:
            pooled = torch.cat([piece.of(sources) for _, piece in self._first], dim=1)
        else:
            pooled = replicated.new_zeros(replicated.shape[0], self._columns)
            for column, piece in self._first:
                pooled.narrow(1, column, piece.columns).copy_(piece.of(sources))
        for column, piece in self._partial:
            pooled.narrow(1, column, piece.columns).add_(piece.of(sources))
        return pooled


def pooled_dims(declaration: DLRMDeclaration) -> list[int]:
    """Columns that each feature has among the pooled vectors: none of a sequence."""
    tables = [declaration.table(feature.table) for feature in declaration.sparse_features]
    return [0 if table.pooling == "none" else table.embedding_dim for table in tables]


class _Piece(NamedTuple):
    """Columns [start, start + columns) of what came from a rank, or, after these, of the replicated features."""

    source: int
    start: int
    columns: int

    def of(self, sources: Sequence[torch.Tensor]) -> torch.Tensor:
        return sources[self.source].narrow(1, self.start, self.columns)


def _runs(pieces: Iterable[tuple[int, _Piece]]) -> Iterator[tuple[int, _Piece]]:
    """(column, piece) in order, those that are neighbours in their source and in the result as one."""
    run: tuple[int, _Piece] | None = None
    for column, piece in pieces:
        if run is not None:
            first, before = run
            if (piece.source, piece.start, column) == (
                before.source,
                before.start + before.columns,
                first + before.columns,
            ):
                run = (first, before._replace(columns=before.columns + piece.columns))
                continue
            yield run
        run = (column, piece)
    if run is not None:
        yield run

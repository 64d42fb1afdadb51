"""Pooled vectors on their way from the ranks that hold the rows to those that score the samples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import torch
import torch.distributed as dist

from dlrm_factory.config.declaration import DLRMDeclaration
from dlrm_factory.ranks.group import RankGroup
from dlrm_factory.ranks.layout import Layout

_ByPeer: TypeAlias = list[tuple[int, torch.Tensor]]

__all__ = ["Assembly", "Exchange", "Flight"]


@dataclass(frozen=True)
class Flight:
    """An exchange under way.

    Fields:
        received: the own rows' vectors, of each rank: [own rows, that rank's columns]; there once it was waited for.
        sent: kept until then.
        works: of torch.distributed.
        sent_bytes: to other ranks.
    """

    received: list[torch.Tensor]
    sent: torch.Tensor
    works: list[dist.Work]
    sent_bytes: int


class Exchange:
    """One message from each rank to each other, for all tables: point to point, over gloo or NCCL.

    gloo's all-to-all copies more and waits in threads of its own: it takes twice as long. For one thread at a time. Two
    exchanges may be under way; a third overwrites what the first has received.
    """

    def __init__(self, group: RankGroup, layout: Layout, device: torch.device) -> None:
        self._group = group
        self._columns = [part.columns for part in layout.ranks]
        self._rooms = [torch.empty(0), torch.empty(0)]
        if device.type == "cuda":
            # NCCL wants all ranks in a group's first call, and a rank without tables may have nothing to send.
            dist.all_reduce(torch.zeros(1, device=device), group=group.exchange)

    def start(self, pooled: torch.Tensor, rows: Sequence[int]) -> Flight:
        """Send each rank its rows of ``pooled``, [sum of rows, own columns]; ``rows``: of each rank's slice."""
        rank = self._group.rank
        parts = list(pooled.split(list(rows)))
        received = self._receive_into(rows[rank], pooled)
        received[rank] = parts[rank]
        incoming = [(peer, received[peer]) for peer in self._peers() if received[peer].numel()]
        outgoing = [(peer, parts[peer]) for peer in self._peers() if parts[peer].numel()]
        works = self._cross(incoming, outgoing) if incoming or outgoing else []
        return Flight(received, pooled, works, sum(part.nbytes for _, part in outgoing))

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
            work.wait() if flight.sent.is_cuda else work.wait(self._group.deadline)

    def _peers(self) -> Iterator[int]:
        """The other ranks, the next one first, so that not all send to one."""
        size = self._group.size
        return ((self._group.rank + step) % size for step in range(1, size))

    def _receive_into(self, rows: int, like: torch.Tensor) -> list[torch.Tensor]:
        needed = rows * sum(self._columns)
        self._rooms.reverse()
        if self._rooms[0].numel() < needed or self._rooms[0].dtype is not like.dtype:
            self._rooms[0] = torch.empty(2 * needed, dtype=like.dtype, device=like.device)
        places = self._rooms[0][:needed].split([rows * columns for columns in self._columns])
        return [place.view(rows, columns) for place, columns in zip(places, self._columns, strict=True)]


class Assembly:
    """Vectors of all ranks' blocks → those of the features, partial sums added."""

    def __init__(self, layout: Layout, declaration: DLRMDeclaration) -> None:
        self._shape = (len(declaration.sparse_features), declaration.embedding_dim)
        found: dict[tuple[int, int], list[_Piece]] = {}
        for rank, part in enumerate(layout.ranks):
            start = 0
            for block in part.blocks:
                piece = _Piece(rank, start, block.columns)
                found.setdefault((block.feature, block.column), []).append(piece)
                start += block.columns
        for place, feature in enumerate(layout.replicated):
            dim = declaration.embedding_dim
            found[feature, 0] = [_Piece(len(layout.ranks), place * dim, dim)]
        # Copied in one pass, whole runs of columns at a time.
        self._first = list(_runs([found[key][0] for key in sorted(found)]))
        self._partial = [
            (feature * declaration.embedding_dim + column, piece)
            for (feature, column), pieces in found.items()
            for piece in pieces[1:]
        ]

    def __call__(self, received: Sequence[torch.Tensor], replicated: torch.Tensor) -> torch.Tensor:
        """[rows, F, D], features in declared order, of [rows, columns] of each rank and of the replicated features."""
        sources = [*received, replicated]
        parts = [sources[piece.source].narrow(1, piece.start, piece.columns) for piece in self._first]
        pooled = torch.cat(parts, dim=1)
        for column, piece in self._partial:
            added = sources[piece.source].narrow(1, piece.start, piece.columns)
            pooled.narrow(1, column, piece.columns).add_(added)
        return pooled.view(replicated.shape[0], *self._shape)


class _Piece(NamedTuple):
    """Columns [start, start + columns) of what came from a rank, or, after these, of the replicated features."""

    source: int
    start: int
    columns: int


def _runs(pieces: Sequence[_Piece]) -> Iterator[_Piece]:
    """``pieces`` in order, neighbours that lie beside one another as one."""
    run: _Piece | None = None
    for piece in pieces:
        if run is not None and (piece.source, piece.start) == (run.source, run.start + run.columns):
            run = run._replace(columns=run.columns + piece.columns)
            continue
        if run is not None:
            yield run
        run = piece
    if run is not None:
        yield run

"""Pooled vectors on their way from the ranks that hold the rows to those that score the samples."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

from dlrm_factory.config.declaration import DLRMDeclaration
from dlrm_factory.ranks.group import RankGroup
from dlrm_factory.ranks.layout import Layout

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

    def __init__(self, group: RankGroup, layout: Layout) -> None:
        self._group = group
        self._columns = [part.columns for part in layout.ranks]
        self._rooms = [torch.empty(0), torch.empty(0)]

    def start(self, pooled: torch.Tensor, rows: Sequence[int]) -> Flight:
        """Send each rank its rows of ``pooled``, [sum of rows, own columns]; ``rows``: of each rank's slice."""
        rank, group = self._group.rank, self._group.exchange
        parts = list(pooled.split(list(rows)))
        received = self._receive_into(rows[rank], pooled)
        received[rank] = parts[rank]
        outgoing = [(peer, parts[peer]) for peer in self._peers() if parts[peer].numel()]
        operations = [
            dist.P2POp(dist.irecv, received[peer], group=group, group_peer=peer)
            for peer in self._peers()
            if received[peer].numel()
        ]
        operations += [dist.P2POp(dist.isend, part, group=group, group_peer=peer) for peer, part in outgoing]
        works = dist.batch_isend_irecv(operations) if operations else []
        sent = sum(part.numel() * part.element_size() for _, part in outgoing)
        return Flight(received, pooled, works, sent)

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

    def __init__(self, layout: Layout, declaration: DLRMDeclaration, device: torch.device) -> None:
        dim, features = declaration.embedding_dim, len(declaration.sparse_features)
        blocks = [(b.feature, b.column, b.columns) for part in layout.ranks for b in part.blocks]
        blocks += [(feature, 0, dim) for feature in layout.replicated]
        self._shape = (features, dim)
        # Column shards are multiples of this many columns, which move as one.
        self._unit = math.gcd(dim, *(number for _, *numbers in blocks for number in numbers))
        sources: list[list[int]] = [[] for _ in range(features * dim // self._unit)]
        place = 0
        for feature, column, columns in blocks:
            for each in range(columns // self._unit):
                sources[(feature * dim + column) // self._unit + each].append(place)
                place += 1
        self._first = torch.tensor([found[0] for found in sources], device=device)
        self._is_in_order = [found[0] for found in sources] == list(range(place))
        self._partial = [
            tuple(torch.tensor(column, device=device) for column in zip(*layer, strict=True))
            for layer in _layers(sources)
        ]

    def __call__(self, received: Sequence[torch.Tensor], replicated: torch.Tensor) -> torch.Tensor:
        """[rows, F, D], features in declared order, of [rows, columns] of each rank and of the replicated features."""
        rows = replicated.shape[0]
        parts = [part for part in (*received, replicated) if part.shape[1]]
        units = (parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)).view(rows, -1, self._unit)
        pooled = units if self._is_in_order else units.index_select(1, self._first)
        for target, source in self._partial:
            pooled.index_add_(1, target, units.index_select(1, source))
        return pooled.view(rows, *self._shape)


def _layers(sources: list[list[int]]) -> Iterator[list[tuple[int, int]]]:
    """(target, source) of second, third, … partial sums."""
    for layer in range(1, max(len(found) for found in sources)):
        yield [(target, found[layer]) for target, found in enumerate(sources) if layer < len(found)]

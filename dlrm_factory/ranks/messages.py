"""Collectives between the leader and its followers.

Each step starts with one scatter of 8 KiB a rank: a head, and the rank's slice where it fits. Larger slices come in a
second scatter. A step ends with one gather.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

from dlrm_factory.config.declaration import DLRMDeclaration
from dlrm_factory.ranks.group import RankGroup
from dlrm_factory.ranks.slices import Slice, SliceShape

__all__ = ["Command", "Head", "Messages"]

Float32 = npt.NDArray[np.float32]

_FIELDS = 8
_HEAD_BYTES = 8 * _FIELDS
_FIRST_BYTES = 8192


class Command(IntEnum):
    """What the ranks do next.

    SCORE: the rank's slice. PROBE: keep the slice, which is the whole batch, for COMPILE. REASON: send the error of
    the last step. STOP: end.
    """

    SCORE = 1
    PROBE = 2
    COMPILE = 3
    REASON = 4
    STOP = 5


@dataclass(frozen=True, kw_only=True)
class Head:
    """Start of a step, the same for all ranks. ``answer``: numbers that each rank sends back.

    ``flags``: SCORE: 1 to score eagerly. COMPILE: 1 in the background, 2 to build.
    """

    command: Command
    flags: int = 0
    answer: int = 0


class Messages:
    """Sends and receives with buffers of its own, which the next step overwrites. For one thread at a time.

    Every method but `sent_bytes` may raise what torch.distributed raises when a rank is gone or late.
    """

    def __init__(self, group: RankGroup, declaration: DLRMDeclaration) -> None:
        self._group = group
        self._declaration = declaration
        leads = group.rank == 0
        self._first = torch.zeros(group.size if leads else 1, _FIRST_BYTES, dtype=torch.uint8)
        self._own = torch.zeros(_FIRST_BYTES, dtype=torch.uint8)
        self._large = torch.empty(0, dtype=torch.uint8)
        self.sent_bytes = 0

    def send(self, head: Head, slices: Sequence[Slice] = ()) -> None:
        """The leader's way: ``head`` to all ranks, and ``slices``, if there are any, one to each."""
        largest = max((piece.size for piece in slices), default=0)
        alone = _HEAD_BYTES + largest <= _FIRST_BYTES
        first = self._first.numpy()
        for rank in range(self._group.size):
            fields = first[rank, :_HEAD_BYTES].view(np.int64)
            fields[:] = (head.command, head.flags, head.answer, 0 if alone else largest, 0, 0, 0, 0)
            if slices:
                shape = slices[rank].shape
                fields[4:] = (shape.rows, shape.contexts, shape.values, shape.flags)
                if alone and rank:  # the leader keeps its own
                    slices[rank].write(first[rank, _HEAD_BYTES:])
        dist.scatter(self._own, list(self._first), group_src=0, group=self._group.steps)
        self.sent_bytes = _FIRST_BYTES * (self._group.size - 1)
        if alone:
            return
        large = self._room(largest, self._group.size)
        written = large.numpy()
        for rank in range(1, self._group.size):
            slices[rank].write(written[rank])
        dist.scatter(torch.empty_like(large[0]), list(large), group_src=0, group=self._group.data)
        self.sent_bytes += largest * (self._group.size - 1)

    def receive(self) -> tuple[Head, Slice]:
        """A follower's way: wait for the leader's next step. The slice lies in this object's buffers."""
        dist.scatter(self._own, group_src=0, group=self._group.steps)
        received = self._own.numpy()
        command, flags, answer, largest, *rest = received[:_HEAD_BYTES].view(np.int64).tolist()
        shape = SliceShape(rows=rest[0], contexts=rest[1], values=rest[2], flags=rest[3])
        body = received[_HEAD_BYTES:]
        if largest:
            large = self._room(largest, 1)[0]
            dist.scatter(large, group_src=0, group=self._group.data)
            body = large.numpy()
        head = Head(command=Command(command), flags=flags, answer=answer)
        return head, Slice.read(body, shape, self._declaration)

    def gather(self, answer: torch.Tensor, *, patiently: bool = False) -> list[torch.Tensor]:
        """The answers of all ranks, of one shape, at the leader; an empty list elsewhere.

        ``patiently``: without a deadline.
        """
        group = self._group.patience if patiently else self._group.data
        into = [torch.empty_like(answer) for _ in range(self._group.size)] if self._group.rank == 0 else None
        dist.gather(answer, into, group_dst=0, group=group)
        return into or []

    def _room(self, size: int, ranks: int) -> torch.Tensor:
        """uint8 [ranks, size]."""
        if self._large.numel() < size * ranks:
            self._large = torch.empty(2 * size * ranks, dtype=torch.uint8)
        return self._large[: size * ranks].view(ranks, size)

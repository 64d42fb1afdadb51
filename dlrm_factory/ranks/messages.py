"""Messages between the leader and its followers, point to point over gloo, each as long as its content.

A step starts with one message to each rank: a head and, for most batches, the rank's parts. Larger ones than
`FIRST_BYTES` come in a second message. A step ends with each rank's answer.
"""

from __future__ import annotations

import struct
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import IntEnum

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

from dlrm_factory.ranks.group import PATIENCE, RankGroup
from dlrm_factory.ranks.parcels import Parcel, Part

__all__ = ["Command", "Expected", "Head", "Messages"]

# Followers wait with room for so much, and gloo lets a message be shorter than the room for it.
FIRST_BYTES = 1 << 18
# Command, flags, parts; bytes of the parts, if they come in a second message.
_HEAD = struct.Struct("<BBHI")
_HEAD_BYTES = _HEAD.size


class Command(IntEnum):
    """What the ranks do next.

    SCORE: the rank's part of a batch. PROBE: keep the part, which is the whole batch, for COMPILE. REASON: send the
    error of the last step. STOP: end.
    """

    SCORE = 1
    PROBE = 2
    COMPILE = 3
    REASON = 4
    STOP = 5


@dataclass(frozen=True, kw_only=True)
class Head:
    """Start of a step, the same for all ranks.

    ``flags``: SCORE: 1 to score eagerly, 2 for vectors in bfloat16, 4 if the next step is of the same batch. COMPILE:
    1 in the background, 2 to build.
    """

    command: Command
    flags: int = 0


@dataclass(frozen=True)
class Expected:
    """Answers on their way to the leader: room for each, by rank, and what torch.distributed knows of them."""

    answers: dict[int, torch.Tensor]
    works: list[dist.Work]
    deadline: timedelta


class Messages:
    """Sends and receives with buffers of its own. For one thread at a time.

    A part lies in a buffer until the step after the next is sent or received. Every method may raise what
    torch.distributed raises when a rank is gone or late.

    ``sent_bytes``: of the leader's last `send`. ``crossing``: numbers of sequences' vectors that ranks then send one
    another.
    """

    def __init__(self, group: RankGroup, device: torch.device) -> None:
        """``device``: where parts are read to."""
        self._group = group
        self._device = device
        self._pinned = device.type == "cuda"
        ranks = group.size if group.rank == 0 else 1
        self._sets = [[self._empty(FIRST_BYTES) for _ in range(ranks)] for _ in range(2)]
        self._sends: list[list[dist.Work]] = [[], []]
        self.sent_bytes = self.crossing = 0

    def send(
        self, head: Head, parcels: Iterable[Sequence[Parcel]], *, to: Container[int] = range(1 << 30)
    ) -> list[Part]:
        """The leader's way: ``head`` to all ranks, and to each its parcels, the last rank's first. Gives its own parts.

        ``to``: ranks that are sent anything. `flush` waits until it has gone.
        """
        self._next_set()
        self.sent_bytes = self.crossing = 0
        for rank, own in zip(range(self._group.size - 1, -1, -1), parcels, strict=True):
            if rank and rank not in to:
                continue
            sizes = [parcel.size for parcel in own]
            size = _HEAD_BYTES + sum(sizes)
            buffer = self._room(rank, size)
            written = buffer.numpy()
            apart = sum(sizes) if size > FIRST_BYTES else 0
            _write_head(written, head, apart, len(own))
            start = _HEAD_BYTES
            for parcel, each in zip(own, sizes, strict=True):
                parcel.write(written[start : start + each])
                start += each
                self.crossing += parcel.crossing
            if rank:
                first = size - apart
                self._sends[0].append(self._group.steps.send([buffer[:first]], rank, 0))
                if apart:
                    self._sends[0].append(self._group.data.send([buffer[first:size]], rank, 0))
                self.sent_bytes += size
        return Part.read_all(buffer[_HEAD_BYTES:size], len(own), device=self._device)

    def tell(self, head: Head) -> None:
        """The leader's way: ``head`` alone to all ranks, which is gone when this returns."""
        self._next_set()
        for rank in range(1, self._group.size):
            buffer = self._room(rank, _HEAD_BYTES)
            _write_head(buffer.numpy(), head, 0, 0)
            self._sends[0].append(self._group.steps.send([buffer[:_HEAD_BYTES]], rank, 0))
        self.flush()

    def receive(self) -> tuple[Head, list[Part]]:
        """A follower's way: wait for the leader's next step."""
        self._next_set()
        first = self._sets[0][0]
        self._group.steps.recv([first[:FIRST_BYTES]], 0, 0).wait(PATIENCE)
        command, flags, parts, apart = _HEAD.unpack_from(first.numpy())
        body = first[_HEAD_BYTES:]
        if apart:
            body = self._room(0, apart)[:apart]
            self._group.data.recv([body], 0, 0).wait(self._group.deadline)
        head = Head(command=Command(command), flags=flags)
        return head, Part.read_all(body, parts, device=self._device)

    def expect(
        self, sizes: Mapping[int, int], dtype: torch.dtype = torch.float32, *, patiently: bool = False
    ) -> Expected:
        """The leader's way: be ready for an answer of ``sizes[rank]`` numbers from each of some followers.

        ``patiently``: without a deadline.
        """
        group = self._group.patience if patiently else self._group.data
        answers = {rank: torch.empty(size, dtype=dtype) for rank, size in sizes.items()}
        works = [group.recv([answer], rank, 0) for rank, answer in answers.items()]
        return Expected(answers, works, PATIENCE if patiently else self._group.deadline)

    def collect(self, expected: Expected, own: torch.Tensor) -> dict[int, torch.Tensor]:
        """Answers by rank, in order, with the leader's ``own``."""
        for work in expected.works:
            work.wait(expected.deadline)
        return {0: own, **expected.answers}

    def flush(self) -> None:
        """Wait until everything has gone."""
        for works in self._sends:
            for work in works:
                work.wait(self._group.deadline)
            works.clear()

    def answer(self, answer: torch.Tensor, *, patiently: bool = False) -> None:
        """A follower's way."""
        group = self._group.patience if patiently else self._group.data
        group.send([answer], 0, 0).wait(PATIENCE if patiently else self._group.deadline)

    def _next_set(self) -> None:
        self._sets.reverse()
        self._sends.reverse()
        for work in self._sends[0]:
            work.wait(self._group.deadline)
        self._sends[0].clear()

    def _room(self, rank: int, size: int) -> torch.Tensor:
        buffers = self._sets[0]
        if buffers[rank].numel() < size:
            buffers[rank] = self._empty(2 * size)
        return buffers[rank]

    def _empty(self, size: int) -> torch.Tensor:
        return torch.empty(size, dtype=torch.uint8, pin_memory=self._pinned)


def _write_head(target: npt.NDArray[np.uint8], head: Head, apart: int, parts: int) -> None:
    _HEAD.pack_into(target.data, 0, head.command, head.flags, parts, apart)

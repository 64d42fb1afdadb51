"""Messages between the leader and its followers, point to point over gloo, each as long as its content.

A step starts with one message to each rank: a head and, for most batches, the rank's part. Parts larger than
`FIRST_BYTES` come in a second message. A step ends with each rank's answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import torch
import torch.distributed as dist

from dlrm_factory.ranks.group import PATIENCE, RankGroup
from dlrm_factory.ranks.parcels import Parcel, Part, Shape

__all__ = ["Command", "Head", "Messages"]

# Followers wait with room for so much, and gloo lets a message be shorter than the room for it.
FIRST_BYTES = 1 << 18
_FIELDS = 3 + len(Shape._fields)
_HEAD_BYTES = 4 * _FIELDS
_NOTHING = Shape(*(0 for _ in Shape._fields))._replace(width=1, one_each=1)


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

    ``flags``: SCORE: 1 to score eagerly, 2 for vectors in bfloat16. COMPILE: 1 in the background, 2 to build.
    """

    command: Command
    flags: int = 0


class Messages:
    """Sends and receives with buffers of its own, which the next step overwrites. For one thread at a time.

    Every method but `sent_bytes` may raise what torch.distributed raises when a rank is gone or late.
    """

    def __init__(self, group: RankGroup, device: torch.device) -> None:
        """``device``: where parts are read to."""
        self._group = group
        self._device = device
        self._pinned = device.type == "cuda"
        leads = group.rank == 0
        self._buffers = [self._empty(FIRST_BYTES) for _ in range(group.size if leads else 1)]
        self._large = self._empty(0)
        self._sends: list[dist.Work] = []
        self._answers: list[tuple[torch.Tensor, dist.Work]] = []
        self._deadline = group.deadline
        self.sent_bytes = 0

    def send(self, head: Head, parcels: Sequence[Parcel] = ()) -> Part | None:
        """The leader's way: ``head`` to all ranks, and ``parcels``, if there are any, one to each. Gives its own part.

        `collect` waits until they have gone. Without parcels they have gone already.
        """
        self.sent_bytes = 0
        for rank in range(self._group.size - 1, -1, -1):  # its own last: the others are waiting
            parcel = parcels[rank] if parcels else None
            size = parcel.size if parcel else 0
            apart = _HEAD_BYTES + size > FIRST_BYTES
            buffer = self._room(rank, _HEAD_BYTES + size)
            written = buffer.numpy()
            shape = parcel.shape if parcel else _NOTHING
            written[:_HEAD_BYTES].view(np.int32)[:] = (head.command, head.flags, size if apart else 0, *shape)
            if parcel:
                parcel.write(written[_HEAD_BYTES:])
            if rank == 0:
                break
            first = _HEAD_BYTES if apart else _HEAD_BYTES + size
            self._sends.append(self._group.steps.send([buffer[:first]], rank, 0))
            if apart:
                self._sends.append(self._group.data.send([buffer[first : first + size]], rank, 0))
            self.sent_bytes += _HEAD_BYTES + size
        if not parcels:
            self._finish_sends()
            return None
        return Part.read(buffer[_HEAD_BYTES : _HEAD_BYTES + size], shape, device=self._device)

    def receive(self) -> tuple[Head, Part]:
        """A follower's way: wait for the leader's next step. The part lies in this object's buffers."""
        first = self._buffers[0]
        self._group.steps.recv([first], 0, 0).wait(PATIENCE)
        command, flags, apart, *numbers = first[:_HEAD_BYTES].numpy().view(np.int32).tolist()
        body = first[_HEAD_BYTES:]
        if apart:
            if self._large.numel() < apart:
                self._large = self._empty(2 * apart)
            body = self._large[:apart]
            self._group.data.recv([body], 0, 0).wait(self._group.deadline)
        return Head(command=Command(command), flags=flags), Part.read(
            body, Shape(*numbers), device=self._device
        )

    def expect(
        self, sizes: Sequence[int], dtype: torch.dtype = torch.float32, *, patiently: bool = False
    ) -> None:
        """The leader's way: be ready for an answer of ``sizes[rank]`` numbers from every follower.

        ``patiently``: without a deadline.
        """
        group = self._group.patience if patiently else self._group.data
        answers = [torch.empty(size, dtype=dtype) for size in sizes]
        self._answers = [
            (answer, group.recv([answer], rank, 0)) for rank, answer in enumerate(answers) if rank
        ]
        self._deadline = PATIENCE if patiently else self._group.deadline

    def collect(self, own: torch.Tensor) -> list[torch.Tensor]:
        """Answers of all ranks, ``own`` first, that were expected."""
        answers = [own]
        for answer, work in self._answers:
            work.wait(self._deadline)
            answers.append(answer)
        self._answers = []
        self._finish_sends()
        return answers

    def answer(self, answer: torch.Tensor, *, patiently: bool = False) -> None:
        """A follower's way."""
        group = self._group.patience if patiently else self._group.data
        group.send([answer], 0, 0).wait(PATIENCE if patiently else self._group.deadline)

    def _finish_sends(self) -> None:
        sends, self._sends = self._sends, []
        for work in sends:
            work.wait(self._group.deadline)

    def _room(self, rank: int, size: int) -> torch.Tensor:
        if self._buffers[rank].numel() < size:
            self._buffers[rank] = self._empty(2 * size)
        return self._buffers[rank]

    def _empty(self, size: int) -> torch.Tensor:
        return torch.empty(size, dtype=torch.uint8, pin_memory=self._pinned)

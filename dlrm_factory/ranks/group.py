"""Process groups that the ranks of a model talk over."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta

import torch.distributed as dist

from dlrm_factory.model.shard import process_group

__all__ = ["PATIENCE", "RankGroup"]

# A follower waits for its leader's next batch however long it takes; a leader that ends closes the connection.
PATIENCE = timedelta(days=3650)
_LOADING = timedelta(minutes=10)


@dataclass(frozen=True, kw_only=True)
class RankGroup:
    """The ranks of one model, rank 0 the leader.

    Fields:
        rank: of this process.
        size: number of ranks.
        steps: what the leader sends first, with a deadline; followers wait for it without one. gloo.
        patience: answers that may take minutes, without a deadline. gloo.
        data: parts that are too large for a first message, and answers, with a deadline. gloo.
        exchange: vectors, with a deadline; TorchRec shards over it. gloo on CPU, NCCL on CUDA.
        timeout_s: the deadline of one message.
        hosts: machines that the ranks are on, equally many on each.
    """

    rank: int
    size: int
    steps: dist.ProcessGroup
    patience: dist.ProcessGroup
    data: dist.ProcessGroup
    exchange: dist.ProcessGroup
    timeout_s: float
    hosts: int = 1

    @classmethod
    def join(
        cls,
        *,
        device: str = "cpu",
        timeout_s: float = 5.0,
        store: dist.Store | None = None,
    ) -> RankGroup:
        """Join the group of all of the world's ranks, which all call this.

        Args:
            device: ``cpu`` or ``cuda``.
            timeout_s: in seconds, when a rank that does not answer counts as gone, from `begin` on.
            store: where the ranks find each other; None for what torchrun says, or a lone process.
        """
        world = process_group(device, store)
        local = int(os.environ.get("LOCAL_WORLD_SIZE", world.size()))
        return cls(
            rank=world.rank(),
            size=world.size(),
            steps=dist.new_group(timeout=PATIENCE, backend="gloo"),
            patience=dist.new_group(timeout=PATIENCE, backend="gloo"),
            data=dist.new_group(timeout=_LOADING, backend="gloo"),
            exchange=dist.new_group(timeout=_LOADING),
            timeout_s=timeout_s,
            hosts=max(1, world.size() // local),
        )

    @property
    def deadline(self) -> timedelta:
        """For `Work.wait` of messages from one rank to another over gloo."""
        return timedelta(seconds=self.timeout_s)

    def begin(self) -> None:
        """Wait until every rank has loaded its part; from now on each collective has its deadline.

        Some ranks load more slowly than others, and TorchRec talks while it shards.
        """
        dist.barrier(group=self.steps)
        # The leader's step leaves it only when each follower has come to wait for it.
        bounded = [self.data, self.exchange] if self.rank else [self.steps, self.data, self.exchange]
        for group in bounded:
            # torch's own way to shorten a time-out, which has no public name. Collectives alone heed it.
            dist.distributed_c10d._set_pg_timeout(timedelta(seconds=self.timeout_s), group)

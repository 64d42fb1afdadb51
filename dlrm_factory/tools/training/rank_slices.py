"""Which rows of an epoch are whose, step by step."""

from __future__ import annotations

from collections.abc import Iterator

import torch.distributed as dist

from dlrm_factory.tools.data.dataset import Int64, slices

__all__ = ["rank_slices"]


def rank_slices(order: Int64, batch_size: int) -> Iterator[tuple[Int64, int]]:
    """Each step's rows of this rank, and how many rows of ``order`` it uses up.

    TorchRec's float tables need batches of one size on all ranks, so up to ranks - 1 rows of the last step
    are left out.
    """
    rank, ranks = dist.get_rank(), dist.get_world_size()
    for rows in slices(order, batch_size * ranks):
        share = len(rows) // ranks
        if share:
            yield rows[rank * share : (rank + 1) * share], len(rows)

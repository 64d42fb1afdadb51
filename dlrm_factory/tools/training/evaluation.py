"""Logits of rows that are not trained on: each rank computes its share."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

from dlrm_factory.tools.data.dataset import ClickDataset, Int64, slices
from dlrm_factory.tools.data.progress import Observer, Progress
from dlrm_factory.tools.training.objective import Objective

__all__ = ["logits_of"]

_BATCH = 4096


def logits_of(
    objective: Objective, clicks: ClickDataset, rows: Int64, *, observe: Observer
) -> npt.NDArray[np.float32]:
    """Logits of ``rows``: float32 [len(rows)], on every rank. Collective over the ranks."""
    objective.module.eval()
    share = -(-len(rows) // dist.get_world_size())
    mine = _share(rows, share)
    logits = []
    done = 0
    for piece in slices(mine, _BATCH):
        logits.append(objective.logits(objective.batch(clicks, piece)))
        done += len(piece)
        observe(Progress(stage="evaluation", done=len(rows) * done // share, total=len(rows)))
    # A fused Adam counts lookups, and these were no steps.
    objective.optimizers.set_steps(objective.optimizers.unfused.steps)
    return _gathered(torch.cat(logits))[: len(rows)]


def _share(rows: Int64, share: int) -> Int64:
    """This rank's rows. TorchRec's float tables need as many on every rank, so the last row may come again."""
    places = np.arange(share) + dist.get_rank() * share
    return rows[np.minimum(places, len(rows) - 1)]


def _gathered(logits: torch.Tensor) -> npt.NDArray[np.float32]:
    if dist.get_world_size() == 1:
        return logits.cpu().numpy()
    parts = [torch.empty_like(logits) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, logits)
    return torch.cat(parts).cpu().numpy()

"""Means of training losses, kept on the device: reading one waits for it."""

from __future__ import annotations

import msgspec
import torch
import torch.distributed as dist

__all__ = ["LossSum", "Losses"]


class LossSum(msgspec.Struct, kw_only=True):
    """Losses times samples, in nats, and the samples."""

    total: float = 0.0
    samples: int = 0

    def add(self, total: float, samples: int) -> None:
        self.total += total
        self.samples += samples

    def over_ranks(self) -> LossSum:
        """The sum over all ranks. Collective."""
        if dist.get_world_size() == 1:
            return LossSum(total=self.total, samples=self.samples)
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        both = torch.tensor([self.total, self.samples], dtype=torch.float64, device=device)
        dist.all_reduce(both)
        return LossSum(total=both[0].item(), samples=int(both[1].item()))

    @property
    def mean(self) -> float:
        """In nats; 0 without samples."""
        return self.total / max(self.samples, 1)


class Losses:
    """The latest losses of this rank, on their way into the sums."""

    def __init__(self) -> None:
        self._recent = torch.zeros((), dtype=torch.float64)
        self._samples = 0

    def add(self, loss: torch.Tensor, samples: int) -> None:
        """The mean ``loss`` of ``samples`` samples, a scalar."""
        self._recent = self._recent.to(loss.device) + loss.double() * samples
        self._samples += samples

    def pour_into(self, *sums: LossSum) -> float:
        """Adds what came since the last time to ``sums``; its mean in nats, NaN if nothing came."""
        total, samples = self._recent.item(), self._samples
        for each in sums:
            each.add(total, samples)
        self._recent, self._samples = torch.zeros_like(self._recent), 0
        return total / samples if samples else float("nan")

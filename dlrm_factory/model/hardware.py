"""The hardware a plan is made for, real or imagined."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from dlrm_factory.config.options import ShardingOptions
from dlrm_factory.config.sizes import parse_bytes
from dlrm_factory.errors import PlanError
from dlrm_factory.host.memory_limit import physical_memory

__all__ = ["Hardware", "hardware_of"]

DeviceKind = Literal["cpu", "cuda"]
_USABLE = 0.85  # the rest is for the interpreter, dense weights, batches and the operating system
_ASSUMED_HBM = 80_000_000_000


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """``world_size`` ranks on ``hosts`` machines, each rank with ``memory`` bytes for tables.

    PlanError if hosts does not divide world_size.
    """

    device: DeviceKind = "cpu"
    world_size: int = 1
    hosts: int = 1
    memory: int

    def __post_init__(self) -> None:
        if self.world_size < 1 or self.hosts < 1 or self.world_size % self.hosts:
            raise PlanError(
                f"{self.hosts} hosts cannot share {self.world_size} ranks evenly; "
                "give a world size that is a multiple of the hosts"
            )
        if self.memory < 1:
            raise PlanError(f"{self.memory} bytes of memory a rank is not positive")

    @property
    def local_world_size(self) -> int:
        """Ranks a host."""
        return self.world_size // self.hosts


def hardware_of(options: ShardingOptions) -> Hardware:
    """The declared hardware; memory that is not declared is what this machine has for each rank."""
    local = max(1, options.world_size // max(1, options.hosts))
    memory = parse_bytes(options.memory) if options.memory else _default_memory(options.device, local)
    return Hardware(device=options.device, world_size=options.world_size, hosts=options.hosts, memory=memory)


def _default_memory(device: DeviceKind, ranks_on_host: int) -> int:
    if device == "cpu":
        return int(_USABLE * physical_memory() / ranks_on_host)
    if torch.cuda.is_available():
        return int(_USABLE * torch.cuda.get_device_properties(0).total_memory)
    return int(_USABLE * _ASSUMED_HBM)

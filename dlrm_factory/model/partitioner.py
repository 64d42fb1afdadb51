"""Parts of TorchRec's planner that balance ranks by bytes and by time, which follows look-ups, and rate plans."""

from __future__ import annotations

from collections.abc import Iterable

from torchrec.distributed.planner.partitioners import GreedyPerfPartitioner
from torchrec.distributed.planner.types import (
    DeviceHardware,
    PartitionByType,
    PerfModel,
    PlannerError,
    PlannerErrorType,
    Shard,
    ShardingOption,
    Storage,
    Topology,
)

__all__ = ["BalancedPartitioner", "SlowestAndMean"]


class SlowestAndMean(PerfModel):
    """Rates a plan by the slowest rank's time and the mean.

    TorchRec's own knows the slowest rank alone, so that it splits tables by rows, of which every rank sends a vector
    for every sample, where one rank could hold the table.
    """

    def __init__(self, topology: Topology) -> None:
        self._ranks = topology.world_size

    def rate(self, plan: list[ShardingOption]) -> float:
        times = [0.0] * self._ranks
        for shard in _shards(plan):
            times[shard.rank] += _time(shard)
        return max(times) + sum(times) / len(times)


class BalancedPartitioner(GreedyPerfPartitioner):
    """Places each shard on the rank whose larger share, of all bytes or of all time, stays the smallest.

    TorchRec's own goes by time alone, and MemoryBalancedPartitioner by GPU memory alone. Shards that every rank has
    (row_wise, data_parallel) are placed first, as there; of the others the largest share comes first.
    """

    def partition(
        self, proposal: list[ShardingOption], storage_constraint: Topology, hbm_per_device: int | None = None
    ) -> list[ShardingOption]:
        """Set the rank of every shard of ``proposal``. PlannerError if some rank has no room."""
        ranks = [
            DeviceHardware(device.rank, Storage(device.storage.hbm, device.storage.ddr), device.perf)
            for device in storage_constraint.devices
        ]
        uniform = [each for each in proposal if each.partition_by == PartitionByType.UNIFORM.value]
        others = [each for each in proposal if each.partition_by != PartitionByType.UNIFORM.value]
        self._uniform_partition(uniform, ranks)
        load = _Load(proposal, ranks, uniform, storage_constraint.local_world_size)
        for option in sorted(others, key=load.share_of, reverse=True):
            for shard in option.shards:
                load.place(shard, option)
        return proposal


class _Load:
    """Bytes and time on each rank while shards are placed, as shares of those of the whole proposal."""

    def __init__(
        self,
        proposal: list[ShardingOption],
        ranks: list[DeviceHardware],
        placed: list[ShardingOption],
        local_world_size: int,
    ) -> None:
        self._ranks = sorted(ranks, key=lambda rank: (rank.rank % local_world_size, rank.rank))
        self._bytes = sum(map(_bytes, _shards(proposal))) or 1
        self._time = sum(map(_time, _shards(proposal))) or 1.0
        self._taken = {rank.rank: (0.0, 0.0) for rank in ranks}
        for shard in _shards(placed):
            self._add(shard)

    def share_of(self, option: ShardingOption) -> tuple[float, float]:
        """(the larger share, both shares) of the option's largest shard."""
        return max((max(self._share(shard)), sum(self._share(shard))) for shard in option.shards)

    def place(self, shard: Shard, option: ShardingOption) -> None:
        """Choose the shard's rank, one without another shard of the table if there is room."""
        used = {each.rank for each in option.shards if each.rank is not None}
        fitting = [rank for rank in self._ranks if shard.storage.fits_in(rank.storage)]
        if not fitting:
            raise PlannerError(
                error_type=PlannerErrorType.PARTITION,
                message=f"no rank has room for a shard of table {option.name}",
            )
        # Of equal ranks the first one, so that equal tables go to all hosts in turn.
        best = min(fitting, key=lambda rank: (rank.rank in used, *self._after(rank, shard)))
        best.storage -= shard.storage
        shard.rank = best.rank
        self._add(shard)

    def _after(self, rank: DeviceHardware, shard: Shard) -> tuple[float, float]:
        """(the larger share, both shares) of ``rank`` with ``shard``, rounded so that equal ones are equal."""
        shares = [
            taken + more for taken, more in zip(self._taken[rank.rank], self._share(shard), strict=True)
        ]
        return round(max(shares), 9), round(sum(shares), 9)

    def _add(self, shard: Shard) -> None:
        taken, more = self._taken[shard.rank], self._share(shard)
        self._taken[shard.rank] = (taken[0] + more[0], taken[1] + more[1])

    def _share(self, shard: Shard) -> tuple[float, float]:
        return _bytes(shard) / self._bytes, _time(shard) / self._time


def _shards(options: Iterable[ShardingOption]) -> list[Shard]:
    return [shard for option in options for shard in option.shards]


def _bytes(shard: Shard) -> int:
    return int(shard.storage.hbm + shard.storage.ddr)


def _time(shard: Shard) -> float:
    return float(shard.perf.total)

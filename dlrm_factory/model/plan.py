"""TorchRec's planner over a model on meta, and the plan in a form people can read."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn
from torchrec.distributed.embedding_types import EmbeddingComputeKernel
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints
from torchrec.distributed.planner.constants import CROSS_NODE_BANDWIDTH, INTRA_NODE_BANDWIDTH
from torchrec.distributed.planner.enumerators import EmbeddingEnumerator
from torchrec.distributed.planner.proposers import GreedyProposer, UniformProposer
from torchrec.distributed.planner.shard_estimators import EmbeddingPerfEstimator, EmbeddingStorageEstimator
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.distributed.planner.types import PlannerError, ShardingOption, Storage, Topology
from torchrec.distributed.types import ModuleSharder, ShardingPlan

from dlrm_factory.config.declaration import DLRMDeclaration, Table
from dlrm_factory.errors import PlanError
from dlrm_factory.model.dtypes import row_bytes
from dlrm_factory.model.hardware import Hardware
from dlrm_factory.model.partitioner import BalancedPartitioner, SlowestAndMean
from dlrm_factory.model.plan_advice import advice_when_nothing_fits
from dlrm_factory.model.replicas import replica_sets

__all__ = ["Mode", "PlacedShard", "PlacedTable", "TablePlan", "has_fused_optimizer", "make_plan"]

Mode = Literal["float", "quantized"]
_PLANNED_BATCH = 512
_MAX_WORSE = 8  # plans in a row before a proposer is left
_MIN_COLUMNS = 4  # fbgemm's kernels take column shards in multiples of 4


@dataclass(frozen=True, kw_only=True)
class PlacedShard:
    """Rows [row_offset, row_offset + rows) and columns [column_offset, … + columns) of a table, on ``rank``."""

    rank: int
    row_offset: int
    column_offset: int
    rows: int
    columns: int
    bytes: int


@dataclass(frozen=True, kw_only=True)
class PlacedTable:
    """Place of one table. ``lookups``: rows of the table that a sample reads on average."""

    name: str
    dtype: str
    num_embeddings: int
    embedding_dim: int
    pooling: str
    sharding: str
    kernel: str
    lookups: float
    shards: tuple[PlacedShard, ...]

    @property
    def bytes(self) -> int:
        return sum(shard.bytes for shard in self.shards)


@dataclass(frozen=True, kw_only=True)
class TablePlan:
    """Place of every table on ``hardware``; ``sharding_plan`` is TorchRec's own form of it."""

    mode: Mode
    hardware: Hardware
    tables: tuple[PlacedTable, ...]
    sharding_plan: ShardingPlan

    def rank_bytes(self) -> list[int]:
        """Table bytes on each rank."""
        totals = [0] * self.hardware.world_size
        for table in self.tables:
            for shard in table.shards:
                totals[shard.rank] += shard.bytes
        return totals

    def host_bytes(self) -> list[int]:
        """Table bytes on each host: on CPU its ranks map one file, so what all of them hold counts once."""
        hosts, ranks = self.hardware.hosts, self.hardware.local_world_size
        totals = [0] * hosts
        for table in self.tables:
            for host in range(hosts):
                sizes = [shard.bytes for shard in table.shards if shard.rank // ranks == host]
                once = self.hardware.device == "cpu" and table.sharding == "data_parallel"
                totals[host] += max(sizes, default=0) if once else sum(sizes)
        return totals

    def rank_lookups(self) -> list[float]:
        """Rows, or parts of rows, that a sample reads on each rank on average, in batches that all ranks share."""
        ranks = self.hardware.world_size
        totals = [0.0] * ranks
        for table in self.tables:
            for shard in table.shards:
                share = 1 / ranks if table.sharding == "data_parallel" else shard.rows / table.num_embeddings
                totals[shard.rank] += table.lookups * share
        return totals

    def balance(self) -> float:
        """The fullest rank's bytes over the mean: 1.0 is even."""
        totals = self.rank_bytes()
        mean = sum(totals) / len(totals)
        return max(totals) / mean if mean else 1.0

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {
            "mode": self.mode,
            "device": self.hardware.device,
            "world_size": self.hardware.world_size,
            "hosts": self.hardware.hosts,
            "memory_bytes": self.hardware.memory,
            "balance": round(self.balance(), 4),
            "ranks": [
                {
                    "rank": rank,
                    "host": rank // self.hardware.local_world_size,
                    "bytes": size,
                    "lookups": round(lookups, 4),
                }
                for rank, (size, lookups) in enumerate(
                    zip(self.rank_bytes(), self.rank_lookups(), strict=True)
                )
            ],
            "host_bytes": self.host_bytes(),
            "tables": [
                {
                    "name": table.name,
                    "dtype": table.dtype,
                    "num_embeddings": table.num_embeddings,
                    "embedding_dim": table.embedding_dim,
                    "pooling": table.pooling,
                    "sharding": table.sharding,
                    "kernel": table.kernel,
                    "lookups": table.lookups,
                    "bytes": table.bytes,
                    "shards": [vars(shard) for shard in table.shards],
                }
                for table in self.tables
            ],
        }


def make_plan(
    model: nn.Module,
    declaration: DLRMDeclaration,
    hardware: Hardware,
    *,
    mode: Mode,
    sharders: list[ModuleSharder[Any]],
) -> TablePlan:
    """Place the tables of ``model`` (on meta) by TorchRec's planner under the declared shardings.

    The planner is deterministic: every rank makes the same plan for itself, without talking.
    PlanError, with what would make it fit, if nothing does.
    """
    sharding_plan = _find_plan(model, declaration, hardware, mode, sharders)
    # Of the pooled tables' collection, and of the sequences'.
    placements = {name: place for module in sharding_plan.plan.values() for name, place in module.items()}
    if mode == "float" and not has_fused_optimizer(declaration, hardware.device):
        # The planner knows the dense lookup for data_parallel alone, but TorchRec runs it under any sharding.
        for placement in placements.values():
            placement.compute_kernel = EmbeddingComputeKernel.DENSE.value
    tables = tuple(
        _placed_table(declaration, declaration.table(t.name), placements[t.name], hardware, mode)
        for t in declaration.tables
    )
    return TablePlan(mode=mode, hardware=hardware, tables=tables, sharding_plan=sharding_plan)


def _find_plan(
    model: nn.Module,
    declaration: DLRMDeclaration,
    hardware: Hardware,
    mode: Mode,
    sharders: list[ModuleSharder[Any]],
) -> ShardingPlan:
    failed: PlannerError | None = None
    for replicated in _replicas_to_try(declaration, hardware, mode):
        planner = _make_planner(declaration, hardware, mode, replicated)
        try:
            with _quiet_root_logger():
                return planner.plan(model, sharders)
        except PlannerError as error:
            failed = error
    raise PlanError(advice_when_nothing_fits(declaration, hardware, mode=mode)) from failed


@contextlib.contextmanager
def _quiet_root_logger() -> Iterator[None]:
    """The planner warns through the root logger, once for each data_parallel table."""

    def about_other_things(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("Sharding spec not found")

    root = logging.getLogger()
    root.addFilter(about_other_things)
    try:
        yield
    finally:
        root.removeFilter(about_other_things)


def _replicas_to_try(
    declaration: DLRMDeclaration, hardware: Hardware, mode: Mode
) -> Iterable[frozenset[str]]:
    """Training never replicates by itself: TorchRec's data_parallel has no fused optimiser."""
    if mode == "float":
        return [frozenset()]
    on_gpu = hardware.device == "cuda"
    sizes = {
        table.name: table.num_embeddings
        * stored_row_bytes(table, table.embedding_dim, mode, "sgd", on_gpu=on_gpu)
        for table in declaration.tables
    }
    return replica_sets(declaration, hardware, sizes)


def has_fused_optimizer(declaration: DLRMDeclaration, device: str) -> bool:
    """True if fbgemm can fuse the tables' optimiser into their backward pass; fbgemm has no Adam on CPU.

    Without it tables train by TorchRec's dense lookup, whose gradients are as large as the tables.
    """
    return device != "cpu" or declaration.training.sparse_optimizer != "adam"


class _TrueBytes(EmbeddingStorageEstimator):
    """TorchRec's estimate with each table's bytes counted in its own dtype, scale and bias included.

    The model on meta is fp32 whatever it will be served as, and TorchRec cannot hold int4 on meta.
    """

    def __init__(self, *args: Any, declaration: DLRMDeclaration, mode: Mode, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._declaration = declaration
        self._mode = mode
        self._on_gpu = self._topology.compute_device == "cuda"

    def estimate(self, sharding_options: list[ShardingOption], sharder_data_map: Any) -> None:
        super().estimate(sharding_options, sharder_data_map)
        for option in sharding_options:
            table = self._declaration.table(option.name)
            for shard in option.shards:
                rows, columns = shard.size
                size = rows * stored_row_bytes(
                    table,
                    columns,
                    self._mode,
                    self._declaration.training.sparse_optimizer,
                    on_gpu=self._on_gpu,
                )
                shard.storage = Storage(hbm=size, ddr=0) if self._on_gpu else Storage(hbm=0, ddr=size)


def stored_row_bytes(table: Table, columns: int, mode: Mode, optimizer: str, *, on_gpu: bool) -> int:
    """Bytes of one row of a shard with ``columns`` columns. CUDA kernels read rows aligned to 16 bytes.

    A float table counts with the state of the tables' ``optimizer``.
    """
    if mode == "float":
        state = {"sgd": 0, "row_wise_adagrad": 1, "adagrad": columns, "adam": 2 * columns}
        return 4 * (columns + state[optimizer])
    size = row_bytes(table.dtype, columns)
    return -(-size // 16) * 16 if on_gpu else size


def _make_planner(
    declaration: DLRMDeclaration, hardware: Hardware, mode: Mode, replicated: frozenset[str]
) -> EmbeddingShardingPlanner:
    topology = Topology(
        world_size=hardware.world_size,
        local_world_size=hardware.local_world_size,
        compute_device=hardware.device,
        hbm_cap=hardware.memory if hardware.device == "cuda" else 0,
        ddr_cap=hardware.memory if hardware.device == "cpu" else 0,
        # TorchRec's default is NVLink's; ranks on CPU talk by sockets on one host too.
        intra_host_bw=INTRA_NODE_BANDWIDTH if hardware.device == "cuda" else CROSS_NODE_BANDWIDTH,
        created_by_factory=True,
    )
    constraints = {
        table.name: _constraint(declaration, table, mode, hardware, replicated=table.name in replicated)
        for table in declaration.tables
    }
    inference = mode == "quantized"
    estimators = [
        EmbeddingPerfEstimator(topology=topology, constraints=constraints, is_inference=inference),
        _TrueBytes(
            topology=topology,
            constraints=constraints,
            is_inference=inference,
            declaration=declaration,
            mode=mode,
        ),
    ]
    return EmbeddingShardingPlanner(
        topology=topology,
        batch_size=_PLANNED_BATCH,
        constraints=constraints,
        enumerator=EmbeddingEnumerator(
            topology=topology, batch_size=_PLANNED_BATCH, constraints=constraints, estimator=estimators
        ),
        # Whole tables first, which are split, the largest one first, until all fit. TorchRec's own list of proposers
        # begins with a search of up to 10,000 plans, and copies every plan that is better than those before.
        proposer=[
            GreedyProposer(use_depth=False, threshold=_MAX_WORSE),
            GreedyProposer(threshold=_MAX_WORSE),
            UniformProposer(),
        ],
        partitioner=BalancedPartitioner(),
        performance_model=SlowestAndMean(topology),
        # `memory` is what the tables may take; the caller has already set the rest aside.
        storage_reservation=FixedPercentageStorageReservation(percentage=0.0),
        debug=False,
    )


def _constraint(
    declaration: DLRMDeclaration, table: Table, mode: Mode, hardware: Hardware, *, replicated: bool
) -> ParameterConstraints:
    if replicated:
        types = ["data_parallel"]
    else:
        types = _automatic_types(mode, hardware) if table.sharding == "auto" else [table.sharding]
    features = [feature for feature in declaration.sparse_features if feature.table == table.name]
    kernels = [EmbeddingComputeKernel.QUANT] if mode == "quantized" else [EmbeddingComputeKernel.FUSED]
    if "data_parallel" in types:
        kernels.append(EmbeddingComputeKernel.DENSE)
    return ParameterConstraints(
        sharding_types=types,
        compute_kernels=[kernel.value for kernel in kernels],
        pooling_factors=[feature.pooling_factor or 1.0 for feature in features],
        num_poolings=[1.0] * len(features),
        batch_sizes=[_PLANNED_BATCH] * len(features),
        min_partition=max(_MIN_COLUMNS, table.embedding_dim // 4),
    )


def _automatic_types(mode: Mode, hardware: Hardware) -> list[str]:
    """Shardings that ``sharding: auto`` leaves to the planner.

    Never data_parallel, which `replica_sets` decides on: a planner with memory to spare would copy every table to
    every rank. No column_wise to serve on CPU: column shards cannot be read in place from the table file.
    """
    if hardware.world_size == 1:
        return ["table_wise"]
    if mode == "quantized" and hardware.device == "cpu":
        return ["table_wise", "row_wise"]
    return ["table_wise", "row_wise", "column_wise"]


def _placed_table(
    declaration: DLRMDeclaration, table: Table, placement: Any, hardware: Hardware, mode: Mode
) -> PlacedTable:
    optimizer, on_gpu = declaration.training.sparse_optimizer, hardware.device == "cuda"

    def shard(rank: int, offsets: list[int], sizes: list[int]) -> PlacedShard:
        bytes_a_row = stored_row_bytes(table, sizes[1], mode, optimizer, on_gpu=on_gpu)
        return PlacedShard(
            rank=rank,
            row_offset=offsets[0],
            column_offset=offsets[1],
            rows=sizes[0],
            columns=sizes[1],
            bytes=sizes[0] * bytes_a_row,
        )

    if placement.sharding_spec is None:  # data_parallel: the whole table on every rank
        whole = [table.num_embeddings, table.embedding_dim]
        shards = [shard(rank, [0, 0], whole) for rank in range(hardware.world_size)]
    else:
        shards = [
            shard(rank, meta.shard_offsets, meta.shard_sizes)
            for rank, meta in zip(placement.ranks, placement.sharding_spec.shards, strict=True)
        ]
    return PlacedTable(
        name=table.name,
        dtype=table.dtype if mode == "quantized" else "fp32",
        num_embeddings=table.num_embeddings,
        embedding_dim=table.embedding_dim,
        pooling=table.pooling,
        sharding=placement.sharding_type,
        kernel=placement.compute_kernel,
        lookups=declaration.lookups(table.name),
        shards=tuple(shards),
    )

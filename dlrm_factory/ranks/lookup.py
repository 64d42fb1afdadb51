"""A rank's lookup, in the tables that TorchRec has sharded to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import nn

from dlrm_factory.compiled.nbit_lookup import NBitLookup
from dlrm_factory.config.declaration import DLRMDeclaration
from dlrm_factory.model.quantize import kernels_of
from dlrm_factory.ranks.layout import Block, Layout
from dlrm_factory.ranks.parcels import Bags

__all__ = ["RankLookup", "Shard", "Shards", "shards_of"]


@dataclass(frozen=True)
class Shard:
    """Where one shard's rows lie."""

    memory: torch.Tensor
    place: int
    row_alignment: int


# By table, row offset and column offset.
Shards: TypeAlias = dict[tuple[str, int, int], Shard]


class RankLookup:
    """Pools the bags that a rank is sent.

    TorchRec's lookups hold the rows; here they are read in the order that the leader sends ids, which needs no exchange
    to be prepared, and in one call wherever the rows lie in one buffer: in the table file, all of them.
    """

    def __init__(
        self, shards: Shards, layout: Layout, features: Sequence[int], rank: int, declaration: DLRMDeclaration
    ) -> None:
        """``features``: of the declaration, that the layout is of."""
        part = layout.ranks[rank]
        starts = [stream.start for stream in part.streams]
        declared = [declaration.sparse_features[features[feature]].table for feature in layout.replicated]
        replicated = [
            Block(place, feature, table, 0, declaration.table(table).embedding_dim)
            for place, (feature, table) in enumerate(zip(layout.replicated, declared, strict=True))
            if feature not in layout.sequences
        ]
        self._sharded = [
            _Run(blocks, [shards[b.table, starts[b.stream], b.column] for b in blocks], declaration)
            for blocks in _runs(part.blocks, lambda b: shards[b.table, starts[b.stream], b.column])
        ]
        self._replicated = [
            _Run(blocks, [shards[b.table, 0, 0] for b in blocks], declaration)
            for blocks in _runs(replicated, lambda b: shards[b.table, 0, 0])
        ]

    def sharded(self, bags: Bags, rows: int, dtype: torch.dtype) -> torch.Tensor:
        """Sums of all rows' bags: [rows, columns of the rank's blocks]."""
        return _pool(self._sharded, bags, rows, dtype)

    def replicated(self, bags: Bags, rows: int, dtype: torch.dtype) -> torch.Tensor:
        """Sums of the own rows' bags of replicated features: [rows, columns]."""
        return _pool(self._replicated, bags, rows, dtype)


class _Run:
    """Blocks of consecutive streams whose rows lie in one buffer: one call."""

    def __init__(
        self, blocks: Sequence[Block], shards: Sequence[Shard], declaration: DLRMDeclaration
    ) -> None:
        self.first, self.last = blocks[0].stream, blocks[-1].stream + 1
        self.look_up = NBitLookup(
            shards[0].memory,
            places=[shard.place for shard in shards],
            dtypes=[declaration.table(block.table).dtype for block in blocks],
            columns=[block.columns for block in blocks],
            row_alignment=shards[0].row_alignment,
        )


def _runs(blocks: Sequence[Block], shard_of: Callable[[Block], Shard]) -> Iterator[list[Block]]:
    run: list[Block] = []
    for block in blocks:
        if run and (
            block.stream != run[-1].stream + 1
            or shard_of(block).memory.data_ptr() != shard_of(run[-1]).memory.data_ptr()
        ):
            yield run
            run = []
        run.append(block)
    if run:
        yield run


def _pool(runs: Sequence[_Run], bags: Bags, rows: int, dtype: torch.dtype) -> torch.Tensor:
    if not runs or not rows:
        columns = sum(run.look_up.columns for run in runs)
        return torch.empty(rows, columns, dtype=dtype, device=bags.offsets.device)
    # Offsets count from the first of all ids, so a run of streams needs no ids or weights of its own.
    pooled = [
        run.look_up(bags.values, bags.offsets[run.first * rows : run.last * rows + 1], bags.weights, dtype)
        for run in runs
    ]
    return pooled[0] if len(pooled) == 1 else torch.cat(pooled, dim=1)


def shards_of(model: nn.Module) -> Shards:
    """Shards that this rank holds."""
    return dict(_shards(model))


def _shards(model: nn.Module) -> Iterator[tuple[tuple[str, int, int], Shard]]:
    for kernel in kernels_of(model):
        tbe = kernel.tbe
        memory = tbe.weights_host if tbe.host_size > 0 else tbe.weights_dev
        for table, place in zip(kernel.tables, tbe.weights_physical_offsets, strict=True):
            metadata = table.local_metadata
            row, column = (0, 0) if metadata is None else metadata.shard_offsets
            yield (table.name, row, column), Shard(memory, place, tbe.row_alignment)

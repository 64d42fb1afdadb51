"""Which ids each rank is sent and which columns it gives back: the plan, as the messages between ranks need it.

Every rank makes the same `Layout` from the same plan, so no message has to tell of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from dlrm_factory.config.declaration import DLRMDeclaration
from dlrm_factory.model.plan import PlacedShard, PlacedTable, TablePlan

__all__ = ["Block", "Layout", "RankLayout", "Stream", "layout_of"]


@dataclass(frozen=True)
class Stream:
    """Ids of one feature that one rank is sent: those of the table's rows [start, stop), counted from ``start`` on.

    ``whole``: these are all rows of the table.
    """

    feature: int
    start: int
    stop: int
    whole: bool


@dataclass(frozen=True)
class Block:
    """Columns [column, column + columns) of one feature's vectors, pooled of the ids of ``stream``, by its place.

    Blocks of two ranks with the same columns are partial sums, of rows that lie apart.
    """

    stream: int
    feature: int
    table: str
    column: int
    columns: int


@dataclass(frozen=True)
class RankLayout:
    """What one rank looks up for all samples: ``streams``, those of whole tables first, and ``blocks``, in the order
    of the columns that it sends."""

    streams: tuple[Stream, ...]
    blocks: tuple[Block, ...]

    @property
    def columns(self) -> int:
        return sum(block.columns for block in self.blocks)


@dataclass(frozen=True)
class Layout:
    """The plan of a group.

    Fields:
        ranks: what each rank looks up for all samples.
        replicated: features of tables that every rank has, and looks up for its own samples alone.
        means: features whose vectors the receiver divides by the length of the bag.
    """

    ranks: tuple[RankLayout, ...]
    replicated: tuple[int, ...]
    means: tuple[int, ...]


def layout_of(plan: TablePlan, declaration: DLRMDeclaration) -> Layout:
    """The layout of the ranks that ``plan`` was made for."""
    placed = {table.name: table for table in plan.tables}
    tables = [placed[feature.table] for feature in declaration.sparse_features]
    replicated = [f for f, table in enumerate(tables) if table.sharding == "data_parallel"]
    # The weights of a weighted model hold its means, see `dlrm_factory.batch.jagged`.
    means = () if declaration.is_weighted else tuple(f for f, t in enumerate(tables) if t.pooling == "mean")
    ranks = tuple(_rank_layout(tables, rank) for rank in range(plan.hardware.world_size))
    in_order = sorted(replicated, key=lambda f: _lookup_of(tables[f]))
    return Layout(ranks=ranks, replicated=tuple(in_order), means=means)


def _rank_layout(tables: list[PlacedTable], rank: int) -> RankLayout:
    held = list(_held(tables, rank))
    streams = sorted(
        {stream for stream, _ in held},
        key=lambda s: (not s.whole, _lookup_of(tables[s.feature]), s.feature, s.start),
    )
    places = {stream: place for place, stream in enumerate(streams)}
    blocks = [
        Block(places[stream], stream.feature, tables[stream.feature].name, shard.column_offset, shard.columns)
        for stream, shard in held
    ]
    return RankLayout(
        streams=tuple(streams), blocks=tuple(sorted(blocks, key=lambda b: (b.stream, b.column)))
    )


def _lookup_of(table: PlacedTable) -> tuple[str, str, str]:
    """What tables of one of TorchRec's lookups have in common: beside one another they need one call on CUDA too."""
    return table.sharding, table.dtype, table.pooling


def _held(tables: list[PlacedTable], rank: int) -> Iterator[tuple[Stream, PlacedShard]]:
    for feature, table in enumerate(tables):
        if table.sharding == "data_parallel":
            continue
        for shard in table.shards:
            if shard.rank == rank and shard.rows and shard.columns:
                stop = shard.row_offset + shard.rows
                yield (
                    Stream(feature, shard.row_offset, stop, whole=shard.rows == table.num_embeddings),
                    shard,
                )

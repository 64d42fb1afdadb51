"""Plan of a group, as the messages between its ranks need it: ids that each rank is sent, columns that it gives back.

Every rank makes the same `Layout` from the same plan, so no message has to tell of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

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
    """Lookups of one rank for all samples.

    ``streams``: those of whole tables first. ``blocks``: in the order of the columns that the rank sends.
    """

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

    @property
    def means_apart(self) -> list[int]:
        """Features whose lengths the rank that divides by them has not got with their ids."""
        return sorted(set(self.means) - set(self.replicated))

    def only(self, features: Sequence[int]) -> Layout:
        """The same of ``features`` alone, in ascending order, which count from 0 then."""
        places = {feature: place for place, feature in enumerate(features)}
        return Layout(
            ranks=tuple(_only(part, places) for part in self.ranks),
            replicated=tuple(places[feature] for feature in self.replicated if feature in places),
            means=tuple(places[feature] for feature in self.means if feature in places),
        )


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


def _only(part: RankLayout, places: Mapping[int, int]) -> RankLayout:
    kept = [place for place, stream in enumerate(part.streams) if stream.feature in places]
    streams = [replace(part.streams[place], feature=places[part.streams[place].feature]) for place in kept]
    blocks = [
        replace(block, stream=kept.index(block.stream), feature=places[block.feature])
        for block in part.blocks
        if block.feature in places
    ]
    return RankLayout(tuple(streams), tuple(blocks))


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
    """Key of the TorchRec lookup that holds a table: tables of one, beside one another, need one call on CUDA too."""
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

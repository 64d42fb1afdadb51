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
    """Columns [column, column + columns) of one feature's vectors, of the ids of ``stream``, by its place.

    Blocks of two ranks with the same columns are of rows that lie apart: partial sums, where vectors are pooled.
    """

    stream: int
    feature: int
    table: str
    column: int
    columns: int


@dataclass(frozen=True)
class RankLayout:
    """Lookups of one rank for all samples.

    ``streams``: those of whole tables first, and of these, and of the others, the pooled ones. ``blocks``: of pooled
    vectors, in the order of the columns that the rank sends. ``sequences``: of vectors that are sent an id each, in the
    order that they are.
    """

    streams: tuple[Stream, ...]
    blocks: tuple[Block, ...]
    sequences: tuple[Block, ...] = ()

    @property
    def columns(self) -> int:
        """Numbers of a row's pooled vectors."""
        return sum(block.columns for block in self.blocks)


@dataclass(frozen=True)
class Layout:
    """The plan of a group.

    Fields:
        ranks: what each rank looks up for all samples.
        replicated: features of tables that every rank has, and looks up for its own samples alone; pooled ones first.
        means: features whose vectors the receiver divides by the length of the bag.
        sequences: features with a vector an id, in ascending order.
    """

    ranks: tuple[RankLayout, ...]
    replicated: tuple[int, ...]
    means: tuple[int, ...]
    sequences: tuple[int, ...] = ()

    @property
    def lengths_apart(self) -> list[int]:
        """Features whose lengths the receiver needs and has not got with their ids."""
        return sorted({*self.means, *self.sequences} - set(self.replicated))

    def parts_of(self, feature: int) -> list[int]:
        """First row of each part that the ranks hold of a feature's table; none of a replicated one."""
        return sorted({s.start for part in self.ranks for s in part.streams if s.feature == feature})

    def only(self, features: Sequence[int]) -> Layout:
        """The same of ``features`` alone, in ascending order, which count from 0 then."""
        places = {feature: place for place, feature in enumerate(features)}
        return Layout(
            ranks=tuple(_only(part, places) for part in self.ranks),
            replicated=tuple(places[feature] for feature in self.replicated if feature in places),
            means=tuple(places[feature] for feature in self.means if feature in places),
            sequences=tuple(places[feature] for feature in self.sequences if feature in places),
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
    sequences = tuple(f for f, table in enumerate(tables) if _is_sequence(table))
    return Layout(ranks=ranks, replicated=tuple(in_order), means=means, sequences=sequences)


def _only(part: RankLayout, places: Mapping[int, int]) -> RankLayout:
    kept = [place for place, stream in enumerate(part.streams) if stream.feature in places]
    streams = [replace(part.streams[place], feature=places[part.streams[place].feature]) for place in kept]
    pooled, sequences = (
        tuple(
            replace(block, stream=kept.index(block.stream), feature=places[block.feature])
            for block in blocks
            if block.feature in places
        )
        for blocks in (part.blocks, part.sequences)
    )
    return RankLayout(tuple(streams), pooled, sequences)


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
    blocks.sort(key=lambda b: (b.stream, b.column))
    return RankLayout(
        streams=tuple(streams),
        blocks=tuple(block for block in blocks if not _is_sequence(tables[block.feature])),
        sequences=tuple(block for block in blocks if _is_sequence(tables[block.feature])),
    )


def _is_sequence(table: PlacedTable) -> bool:
    return table.pooling == "none"


def _lookup_of(table: PlacedTable) -> tuple[bool, str, str, str]:
    """Key of the TorchRec lookup that holds a table: tables of one, beside one another, need one call on CUDA too."""
    return _is_sequence(table), table.sharding, table.dtype, table.pooling


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

"""Parts that ranks are sent, and slices, without processes."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
import torch
from support.batches import random_batch
from support.sequences import ordered
from support.sharding import mixed_shardings, weighted

from dlrm_factory.batch import FeatureBatch, SharedContext
from dlrm_factory.config import tiny
from dlrm_factory.factory import DLRMFactory
from dlrm_factory.model.hardware import Hardware
from dlrm_factory.ranks import routing
from dlrm_factory.ranks.layout import Layout, RankLayout, Stream, layout_of
from dlrm_factory.ranks.parcels import Parcel, Part
from dlrm_factory.ranks.routing import Router
from dlrm_factory.ranks.slices import arrange, even_sizes
from dlrm_factory.ranks.traffic import plan_traffic

CPU = torch.device("cpu")


def read(parcel: Parcel) -> Part:
    buffer = torch.full((parcel.size,), 255, dtype=torch.uint8)
    parcel.write(buffer.numpy())
    (part,) = Part.read_all(buffer, 1, device=CPU)
    return part


def layout_for(declaration, ranks: int) -> Layout:
    plan = DLRMFactory(declaration).plan(hardware=Hardware(world_size=ranks, memory=1 << 30))
    return layout_of(plan, declaration)


def router_of(declaration, ranks: int) -> Router:
    return Router(layout_for(declaration, ranks), declaration)


def routed(declaration, batch: FeatureBatch, sizes: list[int]) -> list[Part]:
    samples, _ = arrange(batch, None, sizes)
    return [read(parcel) for parcel in router_of(declaration, len(sizes)).route(samples)][::-1]


def bags_of(offsets: torch.Tensor, values: torch.Tensor, bags: int) -> list[list[int]]:
    """Ids of ``bags`` bags."""
    assert len(offsets) == bags + 1
    return [values[offsets[i] : offsets[i + 1]].tolist() for i in range(bags)]


def test_each_rank_gets_the_ids_of_its_rows() -> None:
    # Features: row_wise of 1000, column_wise, data_parallel, row_wise; two samples each.
    batch = FeatureBatch(
        dense=np.array([[1, 2], [3, 4]], dtype=np.float32),
        lengths=np.array([[2, 1], [1, 0], [0, 2], [1, 1]], dtype=np.int32),
        values=np.array([1, 501, 999, 7, 4, 5, 2, 502]),
    )
    first, second = routed(mixed_shardings(), batch, [1, 1])
    assert first.rows == second.rows == [1, 1]
    assert bags_of(first.sharded.offsets, first.sharded.values, 6) == [[7], [], [1], [], [2], []]
    assert bags_of(second.sharded.offsets, second.sharded.values, 6) == [[7], [], [1], [499], [], [2]]
    assert bags_of(first.replicated.offsets, first.replicated.values, 1) == [[]]
    assert bags_of(second.replicated.offsets, second.replicated.values, 1) == [[4, 5]]
    assert [part.dense.tolist() for part in (first, second)] == [[[1, 2]], [[3, 4]]]


def test_one_id_a_bag_crosses_without_lengths() -> None:
    declaration = mixed_shardings()
    ones = np.ones((4, 6), dtype=np.int32)
    batch = FeatureBatch(dense=np.zeros((6, 2), dtype=np.float32), lengths=ones, values=np.arange(24))
    plan = DLRMFactory(declaration).plan(hardware=Hardware(world_size=2, memory=1 << 30))
    follower, leader = router_of(declaration, 2).route(arrange(batch, None, [3, 3])[0])
    traffic = plan_traffic(plan, declaration)
    # All these rows are the leader's, of row_wise tables. Twice four bytes tell the rows of each slice.
    missing = 2 * 6 * 4 / 2
    assert follower.size == 32 + 6 * (traffic.ids + traffic.dense) - missing + 8
    part = read(follower)
    assert bags_of(part.sharded.offsets, part.sharded.values, 18) == [[6 + i] for i in range(6)] + [[]] * 12
    assert bags_of(part.replicated.offsets, part.replicated.values, 3) == [[15], [16], [17]]
    assert read(leader).sharded.lengths is not None


@pytest.mark.parametrize(("longest", "width"), [(255, 1), (300, 2), (40_000, 4)])
def test_lengths_are_as_narrow_as_they_can_be(longest: int, width: int) -> None:
    declaration = tiny()
    lengths = np.array([[1], [longest], [0]], dtype=np.int32)
    batch = FeatureBatch(
        dense=np.zeros((1, 2), dtype=np.float32), lengths=lengths, values=np.arange(1 + longest) % 50
    )
    layout = Layout(ranks=(RankLayout((), ()),), replicated=(0, 1, 2), means=())
    (parcel,) = Router(layout, declaration).route(arrange(batch, None, [1])[0])
    assert parcel.shape.width == width
    part = read(parcel)
    assert part.replicated.lengths is not None
    assert part.replicated.lengths.tolist() == lengths.tolist()
    assert part.replicated.values.tolist() == batch.values.tolist()


def test_weights_go_with_their_ids() -> None:
    declaration = weighted(mixed_shardings())
    batch = random_batch(declaration, 8, seed=3)
    assert batch.weights is not None
    ends = np.cumsum(batch.lengths.sum(axis=1))
    # Of the row_wise first feature: each weight is with one of the two ranks.
    found = []
    for part in routed(declaration, batch, [4, 4]):
        first, last = part.sharded.offsets[8], part.sharded.offsets[16]
        assert part.sharded.weights is not None
        found += part.sharded.weights[first:last].tolist()
    assert sorted(found) == sorted(batch.weights[: ends[0]].tolist())


def test_a_context_goes_to_each_slice_that_needs_it() -> None:
    declaration = tiny()
    samples = random_batch(declaration, 5, longest=0)
    contexts = random_batch(declaration, 2, seed=1)
    own, shared = arrange(samples, SharedContext(bags=contexts, spans=[(0, 4), (4, 5)]), even_sizes(5, 4))
    assert own.rows == [2, 2, 1, 0]
    assert own.spans is not None
    assert [spans.tolist() for spans in own.spans] == [[[0, 2]], [[0, 2]], [[0, 1]], []]
    assert shared is not None
    assert shared.rows == [1, 1, 1, 0]
    assert shared.batch.lengths.tolist() == contexts.lengths[:, [0, 0, 1]].tolist()


def test_samples_and_contexts_are_sent_only_features_they_have_ids_of() -> None:
    declaration = mixed_shardings()
    # Each sample has one id of the second feature; the context has the others.
    lengths = np.array([[0] * 4, [1] * 4, [0] * 4, [0] * 4], dtype=np.int32)
    dense = np.zeros((4, 2), dtype=np.float32)
    samples = FeatureBatch(dense=dense, lengths=lengths, values=np.arange(4))
    bags = FeatureBatch(
        dense=dense[:1],
        lengths=np.array([[1], [0], [2], [1]], dtype=np.int32),
        values=np.array([3, 4, 5, 999]),
    )
    arranged = arrange(samples, SharedContext(bags=bags, spans=[(0, 4)]), [2, 2])
    router = router_of(declaration, 2)
    (second, first), (second_context, first_context) = (
        [read(parcel) for parcel in router.route_used(each)] for each in arranged if each is not None
    )
    assert [part.features for part in (first, first_context)] == [b"\x40", b"\xb0"]
    for part, spans in ((first, [[0, 2]]), (second, [[0, 2]])):
        # One id a bag: without lengths.
        assert part.sharded.lengths is None
        assert bags_of(part.sharded.offsets, part.sharded.values, 4) == [[0], [1], [2], [3]]
        assert part.replicated.values.tolist() == []
        assert part.spans == spans
    # Two rows, the context for each slice, of two row_wise features.
    assert bags_of(first_context.sharded.offsets, first_context.sharded.values, 4) == [[3], [3], [], []]
    assert bags_of(second_context.sharded.offsets, second_context.sharded.values, 4) == [[], [], [499], [499]]
    assert second_context.replicated.values.tolist() == [4, 5]
    assert len(second_context.dense) == 0


def test_more_sets_of_features_than_a_group_keeps_cross_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routing, "MAX_SELECTIONS", 1)
    declaration = mixed_shardings()
    router = router_of(declaration, 2)
    found = []
    for feature in (0, 1, 0):
        lengths = np.zeros((4, 2), dtype=np.int32)
        lengths[feature] = 1
        batch = FeatureBatch(
            dense=np.zeros((2, 2), dtype=np.float32), lengths=lengths, values=np.array([6, 7])
        )
        *_, leader = router.route_used(arrange(batch, None, [1, 1])[0])
        found.append(read(leader))
    assert [part.features for part in found] == [b"\x80", b"", b"\x80"]
    assert bags_of(found[1].sharded.offsets, found[1].sharded.values, 6) == [[6], [7], [], [], [], []]


def test_lengths_that_come_with_replicated_ids_do_not_cross_again() -> None:
    layout = Layout(ranks=(RankLayout((), ()),) * 2, replicated=(0, 2), means=(2, 1))
    assert layout.lengths_apart == [1]


def test_who_scores_is_told_the_lengths_of_sequences_and_which_part_has_each_row() -> None:
    # History and item of a row_wise table of 300 rows, user, category, tags of a data_parallel table.
    declaration = ordered(("row_wise", "table_wise", "table_wise", "data_parallel"))
    batch = FeatureBatch(
        dense=np.zeros((3, 1), dtype=np.float32),
        lengths=np.array([[3, 0, 2], [1, 0, 1], [0, 1, 0], [0, 2, 0], [1, 0, 0]], dtype=np.int32),
        values=np.array([299, 0, 149, 150, 1, 7, 200, 50, 3, 4, 9]),
    )
    parts = routed(declaration, batch, [2, 1])
    first, second = (part.on_host for part in parts)
    assert first is not None
    assert second is not None
    # Of the history, then of the item.
    assert [found.holders.tolist() for found in (first, second)] == [[1, 0, 0, 0], [1, 0, 1]]
    # History, item and category.
    assert first.apart.tolist() == [[3, 0], [1, 0], [0, 2]]
    assert second.apart.tolist() == [[2], [1], [0]]
    assert (first.replicated.tolist(), second.replicated.tolist()) == ([[1, 0]], [[0]])
    for rank, (part, history) in enumerate(zip(parts, ([2, 0, 1], [1, 0, 1]), strict=True)):
        streams = layout_for(declaration, 2).ranks[rank].streams
        lengths = dict(zip(streams, part.on_host.sharded.tolist(), strict=True))
        assert lengths[Stream(0, 150 * rank, 150 * (rank + 1), whole=False)] == history


def test_sequences_that_cross_are_counted_and_a_part_of_many_has_two_bytes() -> None:
    declaration = ordered(("row_wise", "table_wise", "table_wise", "data_parallel"), pooled=False)
    tables = [msgspec.structs.replace(t, sharding="row_wise") for t in declaration.tables]
    declaration = msgspec.structs.replace(declaration, tables=tables)
    batch = FeatureBatch(
        dense=np.zeros((2, 1), dtype=np.float32),
        lengths=np.array([[3, 2], [1, 1], [0, 0]], dtype=np.int32),
        values=np.array([299, 0, 149, 150, 1, 7, 200]),
    )
    second, first = router_of(declaration, 2).route(arrange(batch, None, [1, 1])[0])
    # One id of each sample has its row on the rank that does not score it: 8 columns.
    assert (first.crossing, second.crossing) == (8, 8)
    *_, leader = router_of(declaration, 300).route(arrange(batch, None, [2] + [0] * 299)[0])
    found = read(leader).on_host
    assert found is not None
    # A row a rank.
    assert (found.holders.dtype, found.holders.tolist()) == (np.uint16, batch.values.tolist())


def test_a_part_that_has_no_sequence_is_of_a_model_with_some() -> None:
    declaration = ordered(("row_wise",) * 4)
    batch = FeatureBatch(
        dense=np.zeros((2, 1), dtype=np.float32),
        lengths=np.array([[0, 0], [0, 0], [1, 1], [0, 0], [0, 0]], dtype=np.int32),
        values=np.array([7, 100]),
    )
    for parcel in router_of(declaration, 2).route_used(arrange(batch, None, [1, 1])[0]):
        part = read(parcel)
        assert part.features == b"\x20"
        assert part.on_host is not None
        assert part.on_host.holders.size == 0

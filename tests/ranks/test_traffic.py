"""Bytes that cross under a plan, by hand."""

from __future__ import annotations

import pytest
from support.sequences import ordered
from support.sharding import mixed_shardings

from dlrm_factory.factory import DLRMFactory
from dlrm_factory.model.hardware import Hardware
from dlrm_factory.ranks.layout import layout_of
from dlrm_factory.ranks.traffic import plan_traffic

# Two features of a row_wise table, one of a column_wise, one of a data_parallel; 8 columns each.
DECLARATION = mixed_shardings()
NUMBERS = 4 * len(DECLARATION.dense_features)


def plan(world_size: int, hosts: int = 1):
    hardware = Hardware(world_size=world_size, hosts=hosts, memory=1 << 30)
    return DLRMFactory(DECLARATION).plan(hardware=hardware)


def test_layout_of_each_sharding() -> None:
    layout = layout_of(plan(2), DECLARATION)
    assert (layout.replicated, layout.means) == ((2,), ())
    for rank, part in enumerate(layout.ranks):
        assert [(s.feature, s.start, s.stop, s.whole) for s in part.streams] == [
            (1, 0, 200, True),
            (0, 500 * rank, 500 * (rank + 1), False),
            (3, 500 * rank, 500 * (rank + 1), False),
        ]
        assert [(b.stream, b.feature, b.column, b.columns) for b in part.blocks] == [
            (0, 1, 4 * rank, 4),
            (1, 0, 0, 8),
            (2, 3, 0, 8),
        ]


def test_one_id_a_bag_over_two_ranks() -> None:
    traffic = plan_traffic(plan(2), DECLARATION)
    # The rank that does not lead is sent half of each row_wise feature's ids with a length for each bag, all ids
    # of the column_wise one, and the data_parallel one's of its half of the samples.
    assert traffic.ids == 2 * (4 / 2 + 1) + 4 + 4 / 2
    assert traffic.dense == NUMBERS / 2
    # 20 columns of each rank for the samples of the other.
    assert traffic.pooled == 2 * 20 * 4 / 2
    assert traffic.logits == 4 / 2
    assert traffic.total == traffic.ids + traffic.dense + traffic.pooled + traffic.logits


def test_several_ids_a_bag_have_lengths() -> None:
    traffic = plan_traffic(plan(2), DECLARATION, ids_a_bag=3.0)
    assert traffic.ids == 2 * (12 / 2 + 1) + (12 + 1) + (12 + 1) / 2


def test_the_leader_scores_small_batches_alone() -> None:
    traffic = plan_traffic(plan(2), DECLARATION, shares=[1, 0], number_bytes=2)
    assert (traffic.dense, traffic.logits) == (0, 0)
    assert traffic.pooled == 20 * 2


def test_ranks_of_one_host_send_nothing_between_hosts() -> None:
    assert plan_traffic(plan(4), DECLARATION, between="hosts").total == 0
    four = plan_traffic(plan(4, hosts=2), DECLARATION, between="hosts")
    assert four.logits == pytest.approx(4 / 2)
    assert 0 < four.pooled < plan_traffic(plan(4), DECLARATION).pooled


# History and item of one row_wise table, user of a column_wise, category of a table_wise and tags of a data_parallel.
SEQUENCES = ordered(("row_wise", "table_wise", "column_wise", "data_parallel"))
IDS = [12, 1, 1, 10, 2]


def plan_of_sequences(world_size: int):
    return DLRMFactory(SEQUENCES).plan(hardware=Hardware(world_size=world_size, memory=1 << 30))


def test_layout_of_sequences() -> None:
    layout = layout_of(plan_of_sequences(2), SEQUENCES)
    assert (layout.replicated, layout.means, layout.sequences) == ((4,), (4,), (0, 1, 3))
    assert layout.lengths_apart == [0, 1, 3]
    assert [layout.parts_of(feature) for feature in range(5)] == [[0, 150], [0, 150], [0], [0], []]
    (category,) = (
        rank
        for rank, part in enumerate(layout.ranks)
        for block in part.sequences
        if block.table == "t_category"
    )
    for rank, part in enumerate(layout.ranks):
        streams = [(part.streams[b.stream].feature, part.streams[b.stream].start) for b in part.sequences]
        assert streams == [(3, 0)] * (rank == category) + [(0, 150 * rank), (1, 150 * rank)]
        assert all((b.column, b.columns) == (0, 8) for b in part.sequences)


def test_sequences_over_two_ranks() -> None:
    plan = plan_of_sequences(2)
    layout = layout_of(plan, SEQUENCES)
    traffic = plan_traffic(plan, SEQUENCES, ids_a_bag=IDS)
    whole = [stream.feature for stream in layout.ranks[1].streams if stream.whole]
    assert set(whole) <= {2, 3}
    # Half of the items' ids, with a length for each bag; of the own half of the samples the tags, the lengths of all
    # sequences, and which rank has each item's row.
    ids = 4 * 13 / 2 + 2 + sum(4 * IDS[feature] + 1 for feature in whole)
    assert traffic.ids == ids + (4 * 2 + 1) / 2 + 3 / 2 + 13 / 2
    # 8 columns of each step, half of which is of samples that another rank scores.
    assert traffic.sequences == 4 * 8 * (12 + 1 + 10) / 2
    assert traffic.pooled == 4 * 4 / 2
    assert traffic.total == traffic.ids + traffic.dense + traffic.pooled + traffic.sequences + traffic.logits

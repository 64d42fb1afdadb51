from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.batches import random_batch

from dlrm_factory.batch import (
    Embeddings,
    FeatureBatch,
    SharedContext,
    concatenate,
    join_contexts,
    part_rankings,
    select_bags,
    share_embeddings,
    tile_context,
    with_contexts,
    without_empty_contexts,
)
from dlrm_factory.config import tiny


def batch_of(*bags: list[list[int]], dense: float = 0.0) -> FeatureBatch:
    """One list of bags a feature."""
    lengths = [[len(bag) for bag in feature] for feature in bags]
    return FeatureBatch(
        dense=np.full((len(bags[0]), 1), dense, dtype=np.float32),
        lengths=np.array(lengths, dtype=np.int32),
        values=np.array([i for feature in bags for bag in feature for i in bag], dtype=np.int64),
    )


def bags_of(batch: FeatureBatch) -> list[list[list[int]]]:
    """The inverse of `batch_of`."""
    ends = np.cumsum(batch.lengths)
    bags = np.split(batch.values, ends[:-1])
    return [
        [bag.tolist() for bag in bags[f * len(batch) : (f + 1) * len(batch)]]
        for f in range(len(batch.lengths))
    ]


def test_select_bags_by_hand() -> None:
    batch = batch_of([[7], [8, 9], []], [[1, 2], [], [3]])
    source = np.array([[1, 1, 0, 2], [2, 0, 0, 1]])
    chosen = select_bags(batch, source, dense=np.ones((4, 1), dtype=np.float32))
    assert bags_of(chosen) == [[[8, 9], [8, 9], [7], []], [[3], [1, 2], [1, 2], []]]
    assert (chosen.values.dtype, chosen.lengths.dtype) == (np.int64, np.int32)


def test_tile_context_by_hand() -> None:
    batch = batch_of([[], [], []], [[1, 2], [], [3]])
    context = batch_of([[8, 9]], [[]])
    tiled = tile_context(batch, SharedContext(bags=context, spans=[(1, 3)]))
    assert bags_of(tiled) == [[[], [8, 9], [8, 9]], [[1, 2], [], [3]]]


def test_join_contexts() -> None:
    batches = [batch_of([[1]]), batch_of([[], []]), batch_of([]), batch_of([[]])]
    a, b, c = batch_of([[5]]), batch_of([[6]]), batch_of([[7, 7]])
    shared = join_contexts(batches, [None, a, b, c])
    assert shared is not None
    assert list(shared.spans) == [(1, 3), (3, 4)]
    assert bags_of(shared.bags) == [[[5], [7, 7]]]
    assert bags_of(with_contexts(concatenate(batches), shared)) == [[[1], [], [], [], [5], [7, 7]]]
    assert join_contexts(batches, [None] * 4) is None
    assert join_contexts([batch_of([])], [a]) is None


def test_long_rankings_are_parted_from_all_others() -> None:
    batch = batch_of([[1], [2], [], [], [], [6], [], []], [[], [], [3], [4], [5], [], [7], [8]])
    contexts = batch_of([[11], [12], [13]], [[], [], []])
    shared = SharedContext(bags=contexts, spans=[(2, 4), (4, 5), (6, 8)])
    first, second, rest = part_rankings(batch, shared, apart=[(2, 4), (6, 8)])
    assert (first.rows.tolist(), bags_of(first.samples)) == ([2, 3], [[[], []], [[3], [4]]])
    assert (second.rows.tolist(), bags_of(second.samples)) == ([6, 7], [[[], []], [[7], [8]]])
    assert first.context is not None
    assert second.context is not None
    assert (bags_of(first.context), bags_of(second.context)) == ([[[11]], [[]]], [[[13]], [[]]])
    assert (rest.rows.tolist(), rest.context) == ([0, 1, 4, 5], None)
    assert bags_of(rest.samples) == [[[1], [2], [], [6]], [[], [], [5], []]]
    assert rest.shared is not None
    assert (list(rest.shared.spans), bags_of(rest.shared.bags)) == ([(2, 3)], [[[12]], [[]]])


def test_a_batch_that_is_one_ranking_or_has_no_long_one_is_left_whole() -> None:
    batch, context = batch_of([[], []]), batch_of([[5]])
    shared = SharedContext(bags=context, spans=[(0, 2)])
    (part,) = part_rankings(batch, shared, apart=[(0, 2)])
    assert part.samples is batch
    assert part.context is context
    (part,) = part_rankings(batch, shared, apart=[])
    assert (part.samples is batch, part.shared is shared, part.rows.tolist()) == (True, True, [0, 1])


def test_contexts_without_ids_are_dropped_for_who_only_looks_up() -> None:
    shared = SharedContext(bags=batch_of([[], [5], []]), spans=[(0, 1), (1, 2), (3, 4)])
    kept = without_empty_contexts(shared)
    assert kept is not None
    assert (bags_of(kept.bags), list(kept.spans)) == ([[[5]]], [(1, 2)])
    assert without_empty_contexts(kept) is kept
    assert without_empty_contexts(SharedContext(bags=batch_of([[]]), spans=[(0, 1)])) is None
    assert without_empty_contexts(None) is None


def test_sharing_adds_each_context_to_its_samples() -> None:
    shared = SharedContext(bags=batch_of([[1], [2]]), spans=[(0, 1), (2, 4)])
    pooled = torch.tensor([0.0, 1, 2, 3, 10, 20]).reshape(6, 1)
    assert share_embeddings(Embeddings(pooled), shared.spans).pooled.reshape(-1).tolist() == [10, 1, 22, 23]


def test_sharing_puts_a_contexts_sequence_where_the_samples_have_none() -> None:
    shared = SharedContext(bags=batch_of([[1], []]), spans=[(0, 2), (2, 3)])
    vectors = torch.tensor([[0.0, 0], [0, 0], [7, 8], [1, 2], [0, 0]]).reshape(5, 2, 1)
    lengths = torch.tensor([0, 0, 2, 1, 0])
    found = share_embeddings(Embeddings(torch.zeros(5, 0), [vectors], [lengths]), shared.spans)
    assert found.sequences[0].flatten(1).tolist() == [[1, 2], [1, 2], [7, 8]]
    assert found.lengths[0].tolist() == [1, 1, 2]


@given(
    sizes=st.lists(st.integers(0, 4), min_size=1, max_size=4),
    split=st.integers(0, 3),
    seed=st.integers(0, 999),
)
def test_tiling_gives_each_sample_its_own_bags_and_its_contexts(
    sizes: list[int], split: int, seed: int
) -> None:
    batches, contexts = [], []
    for i, size in enumerate(sizes):
        batch, context = (
            random_batch(tiny(), size, seed=seed + i),
            random_batch(tiny(), 1, seed=seed + 1000 + i),
        )
        batches.append(keep(batch, range(split, 3)))
        contexts.append(keep(context, range(split)))
    shared = join_contexts(batches, contexts)
    joined = concatenate(batches)
    if shared is None:
        assert sum(sizes) == 0
        return
    tiled = bags_of(tile_context(joined, shared))
    expected = [
        [
            bag
            for batch, context in zip(batches, contexts, strict=True)
            for bag in (bags_of(context)[f] * len(batch) if f < split else bags_of(batch)[f])
        ]
        for f in range(3)
    ]
    assert tiled == expected


def keep(batch: FeatureBatch, features: range) -> FeatureBatch:
    """``batch`` with empty bags for all other features."""
    bags = bags_of(batch)
    kept = [feature if f in features else [[]] * len(batch) for f, feature in enumerate(bags)]
    return FeatureBatch(
        dense=batch.dense, lengths=batch_of(*kept).lengths.reshape(3, -1), values=batch_of(*kept).values
    )

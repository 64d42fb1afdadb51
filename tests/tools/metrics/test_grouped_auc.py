"""GAUC against one that is counted pair by pair."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dlrm_factory.tools.metrics.metrics import auc, grouped_auc


def by_hand(labels, scores, groups) -> tuple[float, int, int]:
    """Pair by pair within each group, weighted by its samples."""
    total, samples, used = 0.0, 0, 0
    for group in set(groups.tolist()) - {-1}:
        own = [(label, score) for label, score, g in zip(labels, scores, groups, strict=True) if g == group]
        clicks = [score for label, score in own if label]
        others = [score for label, score in own if not label]
        if not clicks or not others:
            continue
        won = sum((c > o) + 0.5 * (c == o) for c in clicks for o in others)
        total += len(own) * won / (len(clicks) * len(others))
        samples += len(own)
        used += 1
    return (total / samples if samples else math.nan), used, samples


@pytest.mark.parametrize("seed", range(5))
def test_it_is_that_of_all_pairs(seed):
    random = np.random.default_rng(seed)
    labels = random.integers(0, 2, 300)
    scores = random.integers(0, 12, 300) / 12  # with ties, within a group and across
    groups = random.integers(-1, 60, 300)
    found = grouped_auc(labels, scores, groups)
    area, used, samples = by_hand(labels, scores, groups)
    assert found.auc == pytest.approx(area, abs=1e-12)
    assert (found.groups, found.samples) == (used, samples)
    assert 0 < used < 60


def test_one_group_has_the_auc_of_all():
    random = np.random.default_rng(0)
    labels, scores = random.integers(0, 2, 50), random.normal(size=50).round(1)
    found = grouped_auc(labels, scores, np.full(50, 3))
    assert found.auc == pytest.approx(auc(labels, scores), abs=1e-12)


@pytest.mark.parametrize("groups", [[], [0, 1], [-1, -1], [0, 0]])
def test_without_a_group_of_both_labels_it_is_undefined(groups):
    found = grouped_auc(np.ones(len(groups)), np.arange(len(groups)), np.array(groups, dtype=np.int64))
    assert math.isnan(found.auc)
    assert (found.groups, found.samples) == (0, 0)

"""Figures of two versions, and the bounds between them."""

from __future__ import annotations

import json

import numpy as np
import pytest

from dlrm_factory.tools.rollout.judging import (
    RolloutBounds,
    VersionFigures,
    kept_of_top,
    population_stability,
    problems_of,
    read_scores,
)

RANDOM = np.random.default_rng(3)
SCORES = RANDOM.beta(2, 8, 5000)


def figures(**changes: object) -> VersionFigures:
    usual = {"requests": 1000, "errors": 0, "times": np.full(1000, 10.0), "scores": SCORES}
    return VersionFigures(**{**usual, **changes})


def test_the_same_figures_break_no_bound() -> None:
    assert problems_of(figures(), figures(), RolloutBounds()) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"errors": 11}, "11 of 1000 requests got an error, 1.1%; --max-error-rate is 1.0%"),
        (
            {"times": np.full(1000, 21.0)},
            "p99 is 21.0 ms, 2.1 times the 10.0 ms of the old version; --max-p99-ratio is 2",
        ),
        ({"scores": SCORES + 0.2}, "scores have shifted: PSI"),
    ],
)
def test_a_bound_that_is_broken_is_said_with_both_figures(changes: dict[str, object], said: str) -> None:
    (problem,) = problems_of(figures(), figures(**changes), RolloutBounds())
    assert said in problem


@pytest.mark.parametrize(
    "changes",
    [
        {"errors": 10},
        {"requests": 40, "errors": 40},  # too few to say
        {"times": np.full(1000, 19.9)},
        {"times": np.full(40, 900.0)},  # too few
        {"scores": SCORES[:100] + 0.5},  # too few
    ],
)
def test_within_the_bounds_or_too_few(changes: dict[str, object]) -> None:
    assert problems_of(figures(), figures(**changes), RolloutBounds()) == []


def test_small_times_may_differ() -> None:
    assert (
        problems_of(figures(times=np.full(100, 0.5)), figures(times=np.full(100, 5.0)), RolloutBounds()) == []
    )


def test_population_stability_by_hand() -> None:
    old = np.repeat([0.1, 0.2], 500)
    new = np.repeat([0.1, 0.2], [250, 750])
    # Two bins: 1/2 and 1/2 before, 1/4 and 3/4 now.
    by_hand = (0.25 - 0.5) * np.log(0.25 / 0.5) + (0.75 - 0.5) * np.log(0.75 / 0.5)
    assert population_stability(old, new) == pytest.approx(by_hand, rel=0.01)
    assert population_stability(old[:400], new) is None
    same = population_stability(SCORES[:2500], SCORES[2500:])
    assert same is not None
    assert same < 0.02
    # All scores alike, and then all others.
    for other in (0.1, 0.9):
        shifted = population_stability(np.full(1000, 0.5), np.full(1000, other))
        assert shifted is not None
        assert shifted > 5


def test_scores_and_rankings_of_answers() -> None:
    rows = {"predictions": [0.1, 0.3, 0.2]}
    assert read_scores(json.dumps(rows).encode()) == ([0.1, 0.3, 0.2], None)
    many = [0.1 * i for i in range(12)]
    assert read_scores(json.dumps({"predictions": many}).encode()) == (many, list(range(11, -1, -1)))
    ranking = {"ranking": [{"id": "b", "index": 4, "score": 0.9}, {"id": "a", "index": 0, "score": 0.1}]}
    assert read_scores(json.dumps(ranking).encode()) == ([0.9, 0.1], [4, 0])
    assert read_scores(b'{"score": 0.25}') == ([0.25], None)
    for odd in (b"", b"[]", b'{"predictions": null}', b'{"ranking": [1]}', b'{"explanations": []}'):
        assert read_scores(odd) == ([], None)


def test_share_of_the_top_10_that_stays() -> None:
    old = list(range(20))
    assert kept_of_top([(old, old[::-1])]) == 0.0
    assert kept_of_top([(old, old), (old, [*range(5), *range(10, 15)])]) == 0.75
    assert kept_of_top([([1, 2], [2, 1])]) == 1.0
    assert kept_of_top([(None, old), (old, None)]) is None

from __future__ import annotations

import pytest
import torch

from dlrm_factory.tools.importing.matching import tiling_problems
from dlrm_factory.tools.importing.weights import Piece, SourceWeight


def problems(shape, *pieces):
    """Tiling of pieces given as (first row, first column, rows, columns)."""
    made = [
        Piece(offsets=p[:2], shape=p[2:], origin=f"file{i}", load=lambda: torch.zeros(1))
        for i, p in enumerate(pieces)
    ]
    return tiling_problems(SourceWeight(name="w", shape=shape, dtype=torch.float32, pieces=tuple(made)))


@pytest.mark.parametrize(
    "pieces",
    [
        [(0, 0, 10, 8)],
        [(0, 0, 4, 8), (4, 0, 6, 8)],
        [(4, 0, 6, 8), (0, 0, 4, 8), (10, 0, 0, 8)],  # any order, and an empty shard
        [(0, 4, 10, 4), (0, 0, 10, 4)],
        [(0, 0, 5, 4), (5, 0, 5, 4), (0, 4, 10, 4)],  # a grid
    ],
)
def test_whole(pieces):
    assert problems((10, 8), *pieces) == []


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        (
            [(0, 0, 4, 8), (6, 0, 4, 8)],
            "w: rows 4 to 5 are missing from file0, file1; give the files of all ranks",
        ),
        ([(0, 0, 9, 8)], "w: rows 9 to 9 are missing from file0"),
        ([(0, 0, 10, 4)], "w: rows 0 to 9, columns 4 to 7, are missing from file0"),
        ([], "w: rows 0 to 9 are missing; give the files of all ranks"),
        ([(0, 0, 6, 8), (4, 0, 6, 8)], "w: rows 4 to 5 are there twice, again in file1"),
        ([(0, 0, 10, 8), (3, 2, 1, 1)], "w: rows 3 to 3 are there twice, again in file1"),
        ([(0, 0, 5, 8), (5, 0, 6, 8)], "w: file1 has a shard [6, 8] at [5, 0], outside of [10, 8]"),
        ([(-1, 0, 10, 8), (9, 0, 1, 8)], "w: file0 has a shard [10, 8] at [-1, 0], outside of [10, 8]"),
        ([(1, 0, 10, 8)], "w: its only shard is out of place"),
    ],
)
def test_not_whole(pieces, expected):
    assert any(problem.startswith(expected) for problem in problems((10, 8), *pieces))


def test_many_gaps_are_cut_short():
    found = problems((100, 8), *[(row, 0, 1, 8) for row in range(0, 100, 2)])
    assert len(found) == 4
    assert found[-1] == "w: and more rows"


def test_many_shards_take_no_long_time():
    # Row by row; a comparison of each with each would take minutes.
    assert problems((20_000, 8), *[(row, 0, 1, 8) for row in range(20_000)]) == []

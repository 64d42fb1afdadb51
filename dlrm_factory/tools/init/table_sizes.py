"""Rows of tables, embedding_dim and layer sizes that suit what was found."""

from __future__ import annotations

import math
from collections.abc import Iterable

__all__ = ["MOST_VOCABULARY", "bag_length", "embedding_dim", "layer_sizes", "table_rows"]

MOST_VOCABULARY = 1_000_000  # more ids are hashed
_STEPS = (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10)
_MOST_ROWS = 2**31 - 1
_DIMS = (8, 16, 32, 64)


def table_rows(ids: int, room: float = 1.2) -> int:
    """``ids`` and ``room`` for new ones, rounded up to a number people would write."""
    return min(_rounded_up(max(ids * room, 10)), _MOST_ROWS)


def bag_length(longest: int, all_rows: bool) -> int:
    """The longest bag that was seen and half as much again, rounded up."""
    return _rounded_up(max(longest, 1) * (1.5 if all_rows else 2))


def embedding_dim(distinct: Iterable[int]) -> int:
    """The same for all tables: the first of 8, 16, 32, 64 that is twice the fourth root of the most ids or more.

    The fourth root is a common rule for one table; a DLRM's tables share one dimension, and the largest matters most.
    """
    wanted = 2 * math.sqrt(math.sqrt(max(distinct, default=1)))
    return next((dim for dim in _DIMS if dim >= wanted), _DIMS[-1])


def layer_sizes(dim: int) -> tuple[list[int], list[int]]:
    """Of the dense and the over arch: wider for wider embeddings."""
    return [4 * dim, dim], [8 * dim, 4 * dim, 1]


def _rounded_up(number: float) -> int:
    power = 10 ** math.floor(math.log10(number))
    return next(math.ceil(step * power) for step in _STEPS if step * power >= number)

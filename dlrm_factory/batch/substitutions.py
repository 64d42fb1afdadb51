"""Counts of values that a batch does not hold as they were sent."""

from __future__ import annotations

import msgspec
import numpy as np
import numpy.typing as npt

__all__ = ["Substitutions"]

Int64 = npt.NDArray[np.int64]


class Substitutions(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """Values of a batch that stand for others, by feature in declared order. None where there are none.

    Fields:
        missing: int64 [dense features], samples that lack the feature and take its default.
        unknown_ids: int64 [F], ids that the vocabulary lacks: left out, or given a row for such ids.
        truncated_bags: int64 [F], bags that were cut to ``max_length``.
    """

    missing: Int64 | None = None
    unknown_ids: Int64 | None = None
    truncated_bags: Int64 | None = None

"""Arrow column → bags of embedding rows: one sparse feature of some samples."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dlrm_factory.config.declaration import SparseFeature
from dlrm_factory.features.trimming import trim_bags
from dlrm_factory.features.vocabulary_rows import DROPPED, UNKNOWN
from dlrm_factory.tools.data.arrow_types import is_list, is_text
from dlrm_factory.tools.data.bag_lists import flatten_lists, flatten_scalars, split_text
from dlrm_factory.tools.data.bag_weights import encode_bag_weights
from dlrm_factory.tools.data.ids import Locate, LookUp, encode_ids, integers_of
from dlrm_factory.tools.data.places import Place

__all__ = ["Bags", "encode_bags", "raw_ids"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bags:
    """One sparse feature of n samples, jagged.

    Fields:
        values: int64 [lengths.sum()], rows of the feature's table.
        lengths: int64 [n], ids in each bag.
        weights: float32 [lengths.sum()]; None if the feature has none.
    """

    values: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float32] | None = None

    def take(self, kept: npt.NDArray[np.bool_]) -> Bags:
        """The bags of the samples that ``kept``, bool [n], says."""
        ids = np.repeat(kept, self.lengths)
        weights = None if self.weights is None else self.weights[ids]
        return Bags(values=self.values[ids], lengths=self.lengths[kept], weights=weights)

    def emptied(self, mask: npt.NDArray[np.bool_]) -> Bags:
        """Empty bags for the samples that ``mask``, bool [n], says."""
        ids = np.repeat(~mask, self.lengths)
        weights = None if self.weights is None else self.weights[ids]
        return Bags(values=self.values[ids], lengths=np.where(mask, 0, self.lengths), weights=weights)


def encode_bags(
    column: pa.Array,
    feature: SparseFeature,
    num_embeddings: int,
    separator: str,
    place: Place,
    *,
    look_up: LookUp | None = None,
    weights: pa.Array | None = None,
) -> Bags:
    """The bags of ``column``: null is an empty bag, a list is a bag, anything else is a bag of one id.

    Text is split at ``separator`` if the feature is multi-valued (max_length > 1). Then bags are trimmed
    as those of requests are.

    Args:
        look_up: for ``ids: vocabulary``, see `dlrm_factory.tools.data.ids`.
        weights: the feature's column of weights, if it has one.

    Raises:
        DataError: a bag that is too long, an id that is none, an index outside the table, a wrong weight; or ``place``
            takes the cell down, and the bag is empty.
    """
    ids, lengths = _flatten(column, feature, separator, place)
    too_long = np.flatnonzero(lengths > feature.max_length)
    if feature.over_max_length == "error":
        place.refuse(
            too_long,
            "bag too long",
            lambda k: (
                f"the bag holds {lengths[too_long[k]]} ids, but max_length is {feature.max_length}; "
                "shorten it, raise the feature's max_length, or declare over_max_length: truncate"
            ),
        )
    rows = encode_ids(ids, feature, num_embeddings, place, _locator(lengths), look_up)
    rows = np.where(rows == UNKNOWN, DROPPED, rows) if look_up else rows
    numbers = None if weights is None else encode_bag_weights(weights, lengths, separator, place)
    rows, trimmed, numbers = trim_bags([feature], rows, lengths[None, :], numbers)
    bags = Bags(values=rows, lengths=trimmed[0], weights=numbers)
    return bags if place.cells is None else bags.emptied(place.cells.mask)


def raw_ids(
    column: pa.Array, feature: SparseFeature, separator: str, place: Place
) -> tuple[pa.Array | npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The ids of all bags, text or int64 [lengths.sum()], and the bags' lengths, int64 [n]."""
    ids, lengths = _flatten(column, feature, separator, place)
    if is_text(ids.type):
        return ids, lengths
    if not len(ids):
        return np.empty(0, dtype=np.int64), lengths
    return integers_of(ids, place, _locator(lengths)), lengths


def _locator(lengths: npt.NDArray[np.int64]) -> Locate:
    """Which samples hold the ids at places among all ids."""
    return lambda flat: np.searchsorted(np.cumsum(lengths), flat, side="right").astype(np.int64)


def _flatten(
    column: pa.Array, feature: SparseFeature, separator: str, place: Place
) -> tuple[pa.Array, npt.NDArray[np.int64]]:
    """All ids of the column one after another, without nulls, and int64 [n] ids of each sample."""
    kind = column.type
    if is_list(kind):
        return flatten_lists(column, place)
    if is_text(kind) and feature.max_length > 1:
        return split_text(column, separator)
    return flatten_scalars(column)

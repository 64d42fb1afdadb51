"""Arrow columns → bags of embedding rows and their weights: the sparse features of some samples."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from dlrm_factory.config.declaration import SparseFeature
from dlrm_factory.features import shown
from dlrm_factory.features.arrow import (
    above_int64,
    flatten_column,
    integers,
    is_number,
    is_text,
    plain_column,
)
from dlrm_factory.features.ids import INT64_MIN, canonical_int, hash_keys, mix_int64
from dlrm_factory.features.trimming import trim_bags
from dlrm_factory.features.vocabulary_rows import DROPPED, UNKNOWN
from dlrm_factory.tools.data.bad_rows import Place

__all__ = ["Bags", "encode_bag_weights", "encode_bags", "flatten_values", "raw_ids"]


logger = logging.getLogger(__name__)
Int64 = npt.NDArray[np.int64]
UInt64 = npt.NDArray[np.uint64]

# Places among all ids of a chunk → rows of the chunk.
Locate = Callable[[Int64], Int64]

# Raw ids → rows of a vocabulary.
LookUp = Callable[["Sequence[int | str] | Int64"], Int64]
_EXACT_FLOAT = 2.0**53  # above it float64 skips integers


@dataclass(frozen=True, slots=True, kw_only=True)
class Bags:
    """One sparse feature of n samples, jagged.

    Fields:
        values: int64 [lengths.sum()], rows of the feature's table.
        lengths: int64 [n], ids in each bag.
        weights: float32 [lengths.sum()]; None if the feature has none.
        hashes: uint64 [lengths.sum()], of the ids of a feature with ``ids: hash``; else None.
        unknown: int64 [n], ids that each bag lost as they are not in the vocabulary; None if none did.
    """

    values: Int64
    lengths: Int64
    weights: npt.NDArray[np.float32] | None = None
    hashes: UInt64 | None = None
    unknown: Int64 | None = None

    def take(self, kept: npt.NDArray[np.bool_]) -> Bags:
        """Bags of the samples in the mask ``kept``, bool [n]."""
        unknown = None if self.unknown is None else self.unknown[kept]
        return self._with(np.repeat(kept, self.lengths), self.lengths[kept], unknown)

    def emptied(self, mask: npt.NDArray[np.bool_]) -> Bags:
        """Same bags, empty for the samples in ``mask``, bool [n]."""
        unknown = None if self.unknown is None else np.where(mask, 0, self.unknown)
        return self._with(np.repeat(~mask, self.lengths), np.where(mask, 0, self.lengths), unknown)

    def _with(self, ids: npt.NDArray[np.bool_], lengths: Int64, unknown: Int64 | None) -> Bags:
        """Bags of ``lengths`` with the ids of a mask, bool [lengths.sum()]."""
        return Bags(
            values=self.values[ids],
            lengths=lengths,
            weights=None if self.weights is None else self.weights[ids],
            hashes=None if self.hashes is None else self.hashes[ids],
            unknown=unknown,
        )


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
    """Bags of ``column``: null is an empty bag, a list is a bag, anything else is a bag of one id.

    Text is split at ``separator`` if the feature is multi-valued (max_length > 1). Then bags are trimmed
    as those of requests are.

    Args:
        look_up: raw ids → rows of a vocabulary, for ``ids: vocabulary``; may give negative rows, for ids to leave out.
        weights: the feature's column of weights, if it has one.

    Raises:
        DataError: a bag that is too long, an id that is none, an index outside the table, a wrong weight; or ``place``
            records the cell, and the bag is empty.
    """
    ids, lengths = _flatten(column, place, separator if feature.max_length > 1 else None)
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
    rows = _encode_ids(ids, feature, num_embeddings, place, _locator(lengths), look_up)
    unknown = None
    if look_up:
        rows = np.where(rows == UNKNOWN, DROPPED, rows)
        unknown = _count_by_sample(rows == DROPPED, lengths)
    numbers = None if weights is None else encode_bag_weights(weights, lengths, separator, place)
    rows, trimmed, numbers = trim_bags([feature], rows, lengths[None, :], numbers)
    hashes = None
    if feature.ids == "hash":
        hashes = rows.view(np.uint64)
        rows = (hashes % np.uint64(num_embeddings)).astype(np.int64)
    bags = Bags(values=rows, lengths=trimmed[0], weights=numbers, hashes=hashes, unknown=unknown)
    return bags if place.cells is None else bags.emptied(place.cells.mask)


def _count_by_sample(mask: npt.NDArray[np.bool_], lengths: Int64) -> Int64 | None:
    """Number of ids in ``mask`` of each of the bags of ``lengths``, int64 [n]; None if there are none."""
    places = np.flatnonzero(mask)
    return np.bincount(_locator(lengths)(places), minlength=len(lengths)) if len(places) else None


def raw_ids(
    column: pa.Array, feature: SparseFeature, separator: str, place: Place
) -> tuple[pa.Array | Int64, Int64]:
    """Ids of all bags, text or int64 [lengths.sum()], and the bags' lengths, int64 [n]."""
    ids, lengths = _flatten(column, place, separator if feature.max_length > 1 else None)
    if is_text(ids.type):
        return ids, lengths
    if not len(ids):
        return np.empty(0, dtype=np.int64), lengths
    return _integers_of(ids, place, _locator(lengths)), lengths


def encode_bag_weights(
    column: pa.Array, lengths: Int64, separator: str, place: Place
) -> npt.NDArray[np.float32]:
    """Weights of bags with ``lengths`` ids: float32 [lengths.sum()]. A null in place of them all means 1 each.

    DataError unless there is a finite number for each id.
    """
    place = place.with_column(f"{place.column}.weights")
    raw, counts = _flatten(column, place, separator)
    missing = column.is_null().to_numpy(zero_copy_only=False)
    unequal = np.flatnonzero((counts != lengths) & ~missing)
    place.refuse(
        unequal,
        "not one weight for each id",
        lambda k: f"{lengths[unequal[k]]} ids have {counts[unequal[k]]} weights; give one weight for each id",
    )
    numbers = _weights_of(raw, counts, place)
    if len(unequal):
        missing = missing.copy()
        missing[unequal] = True
        numbers = numbers[~np.repeat(missing, counts)]
    weights = np.ones(int(lengths.sum()), dtype=np.float32)
    weights[~np.repeat(missing, lengths)] = numbers
    return weights


def flatten_values(column: pa.Array, separator: str | None) -> tuple[pa.Array, Int64, Int64]:
    """Bags of a column of values, of lists, or of text that is split at ``separator``, if that is not None.

    A null, or NaN, in place of a bag is an empty bag.

    Returns:
        All values one after another, without nulls; how many each of n samples has, int64 [n]; and the samples whose
        lists held nulls, int64, ascending, one for each null.
    """
    column = plain_column(column)
    if is_text(column.type) and separator is not None:
        return *_split_text(column, separator), np.empty(0, dtype=np.int64)
    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)
    values, counts = flatten_column(column)
    lengths = counts.astype(np.int64)
    nulls = np.flatnonzero(values.is_null().to_numpy(zero_copy_only=False))
    rows = _locator(lengths)(nulls)
    if not len(rows):
        return values, lengths, rows
    return values.drop_null(), lengths - np.bincount(rows, minlength=len(lengths)), rows


def _flatten(column: pa.Array, place: Place, separator: str | None) -> tuple[pa.Array, Int64]:
    """Values and lengths as `flatten_values` gives; a null within a list is refused."""
    values, lengths, rows = flatten_values(column, separator)
    problem = "the bag holds a null; leave it out, or use a null in place of the whole bag"
    place.refuse(rows, "null in a bag", lambda _: problem)
    return values, lengths


def _split_text(text: pa.Array, separator: str) -> tuple[pa.Array, Int64]:
    """``"3|9"`` → 3 and 9; empty parts are left out, so ``"3|"`` is the bag of 3."""
    parts, counts = flatten_column(pc.split_pattern(text.cast(pa.string()), separator))
    kept = pc.not_equal(parts, "")
    samples = np.repeat(np.arange(len(text)), counts)
    lengths = np.bincount(samples[kept.to_numpy(zero_copy_only=False)], minlength=len(text))
    return parts.filter(kept), lengths.astype(np.int64)


def _locator(lengths: Int64) -> Locate:
    """Function from places among all ids to the samples that hold them."""
    return lambda flat: np.searchsorted(np.cumsum(lengths), flat, side="right").astype(np.int64)


def _encode_ids(
    ids: pa.Array,
    feature: SparseFeature,
    num_embeddings: int,
    place: Place,
    locate: Locate,
    look_up: LookUp | None = None,
) -> Int64:
    """Table rows of ``ids`` (no nulls): int64 [len(ids)], each in [0, num_embeddings); for ``ids: hash`` H's bits.

    ``locate`` gives the rows in the chunk that hold ids. DataError names the first. ``look_up`` is for
    ``ids: vocabulary``, and may give negative rows too, for ids to leave out.
    """
    if not len(ids):
        return np.empty(0, dtype=np.int64)
    if is_text(ids.type):
        return _encode_text(ids, feature, num_embeddings, place, locate, look_up)
    integers = _integers_of(ids, place, locate)
    if look_up is not None:
        return look_up(integers)
    if feature.ids == "hash":
        return mix_int64(integers).view(np.int64)
    return _checked_range(integers, num_embeddings, place, locate)


def _encode_text(
    ids: pa.Array,
    feature: SparseFeature,
    num_embeddings: int,
    place: Place,
    locate: Locate,
    look_up: LookUp | None,
) -> Int64:
    # Each distinct text is encoded once.
    encoded = ids if pa.types.is_dictionary(ids.type) else ids.dictionary_encode()
    places = encoded.indices.to_numpy(zero_copy_only=False)
    texts = encoded.dictionary.to_pylist()
    if look_up is not None:
        _warn_of_float_ids(texts, place)
        return look_up(texts)[places]
    if feature.ids == "hash":
        _warn_of_float_ids(texts, place)
        return hash_keys(texts).view(np.int64)[places]
    rows = np.array([_index(text) for text in texts], dtype=np.int64)[places]
    wrong = np.flatnonzero(rows == INT64_MIN)
    place.refuse(locate(wrong), "not an integer id", lambda k: _not_an_index(texts[places[wrong[k]]]))
    rows[wrong] = 0
    return _checked_range(rows, num_embeddings, place, locate)


def _index(text: str) -> int:
    number = canonical_int(text)
    return INT64_MIN if number is None else number


def _not_an_index(text: str) -> str:
    looks_float = text.endswith(".0") and canonical_int(text[:-2]) is not None
    remedy = (
        "write the column as integers (pandas: astype('Int64') keeps gaps)"
        if looks_float
        else "declare the feature `ids: hash` to use any text"
    )
    return f"{shown(text)} is not an integer id, which `ids: index` needs; {remedy}"


def _warn_of_float_ids(texts: list[str], place: Place) -> None:
    # A gap makes pandas write integers as floats. "3.0" may be meant (a version), so it is no error.
    for text in texts:
        if text.endswith(".0") and canonical_int(text[:-2]) is not None:
            logger.warning(
                '%s, column "%s": the id "%s" is text and is not the id %s; if the ids are '
                "integers, write the column as such (pandas: astype('Int64'))",
                place.source, place.column, text, text[:-2],
            )  # fmt: skip
            return


def _integers_of(ids: pa.Array, place: Place, locate: Locate) -> Int64:
    """Int64 [len(ids)]; integral floats are taken, as pandas makes floats of integers with gaps."""
    kind = ids.type
    if pa.types.is_integer(kind):
        above = above_int64(ids)
        if above is not None:
            ids = _refuse(pa.array(above), ids, place, locate, "is above 2**63 - 1")
        return integers(ids)
    if pa.types.is_floating(kind):
        numbers = ids.cast(pa.float64())
        fractional = pc.not_equal(pc.floor(numbers), numbers)
        numbers = _refuse(fractional, numbers, place, locate, "is not an integer")
        # From 2**53 on the float may stand for another id than the one that was meant.
        inexact = pc.invert(pc.less(pc.abs(numbers), _EXACT_FLOAT))
        problem = "does not fit a float exactly; write ids as integers or text"
        numbers = _refuse(inexact, numbers, place, locate, problem)
        return numbers.cast(pa.int64()).to_numpy(zero_copy_only=False)
    raise place.column_error(f"holds {kind}; ids are integers or text")


def _refuse(wrong: pa.Array, ids: pa.Array, place: Place, locate: Locate, problem: str) -> pa.Array:
    """Replace the wrong ones of ``ids`` by 0, if they are not an error."""
    found = np.flatnonzero(wrong.to_numpy(zero_copy_only=False))
    if not len(found):
        return ids
    place.refuse(locate(found), "not an integer id", lambda k: f"id {ids[int(found[k])].as_py()} {problem}")
    return pc.if_else(wrong, pa.scalar(0, ids.type), ids)


def _checked_range(rows: Int64, num_embeddings: int, place: Place, locate: Locate) -> Int64:
    wrong = np.flatnonzero((rows < 0) | (rows >= num_embeddings))
    place.refuse(
        locate(wrong),
        "id out of range",
        lambda k: (
            f"id {rows[wrong[k]]} is out of range [0, {num_embeddings}); raise the table's num_embeddings, "
            "or declare the feature `ids: hash`"
        ),
    )
    return np.clip(rows, 0, num_embeddings - 1) if len(wrong) else rows


def _weights_of(raw: pa.Array, counts: Int64, place: Place) -> npt.NDArray[np.float32]:
    if not (is_text(raw.type) or is_number(raw.type) or pa.types.is_null(raw.type)):
        raise place.column_error(f"holds {raw.type}; weights are numbers")
    try:
        numbers = raw.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    except pa.ArrowInvalid:
        numbers = np.array([_number(text) for text in raw.to_pylist()])
    with np.errstate(over="ignore"):
        weights: npt.NDArray[np.float32] = numbers.astype(np.float32)
    wrong = np.flatnonzero(~np.isfinite(weights))
    place.refuse(
        _locator(counts)(wrong),
        "weight not a finite number",
        lambda k: f"weight {shown(raw[int(wrong[k])].as_py())} is not a finite number",
    )
    weights[wrong] = 1
    return weights


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return np.nan

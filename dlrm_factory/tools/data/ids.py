"""Arrow array of raw ids → rows of an embedding table, by the functions that serve requests too."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from dlrm_factory.config.declaration import SparseFeature
from dlrm_factory.features import shown
from dlrm_factory.features.ids import INT64_MAX, INT64_MIN, canonical_int, hash_ids, hash_int64
from dlrm_factory.tools.data.arrow_types import is_text
from dlrm_factory.tools.data.places import Place

__all__ = ["Locate", "LookUp", "encode_ids", "integers_of"]

logger = logging.getLogger(__name__)

Int64 = npt.NDArray[np.int64]
# Places among all ids of a chunk → rows of the chunk.
Locate = Callable[[Int64], Int64]
# Raw ids → rows of a vocabulary.
LookUp = Callable[["Sequence[int | str] | Int64"], Int64]

_EXACT_FLOAT = 2.0**53  # above it float64 skips integers


def encode_ids(
    ids: pa.Array,
    feature: SparseFeature,
    num_embeddings: int,
    place: Place,
    locate: Locate,
    look_up: LookUp | None = None,
) -> Int64:
    """Table rows of ``ids`` (no nulls): int64 [len(ids)], each in [0, num_embeddings).

    ``locate`` gives the rows in the chunk that hold ids. DataError names the first. ``look_up`` is for
    ``ids: vocabulary``, and may give negative rows too, for ids to leave out.
    """
    if not len(ids):
        return np.empty(0, dtype=np.int64)
    if is_text(ids.type):
        return _encode_text(ids, feature, num_embeddings, place, locate, look_up)
    integers = integers_of(ids, place, locate)
    if look_up is not None:
        return look_up(integers)
    if feature.ids == "hash":
        return hash_int64(integers, num_embeddings)
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
        return hash_ids(texts, num_embeddings)[places]
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


def integers_of(ids: pa.Array, place: Place, locate: Locate) -> Int64:
    """int64 [len(ids)]; integral floats are taken, as pandas makes floats of integers with gaps."""
    kind = ids.type
    if pa.types.is_integer(kind):
        if pa.types.is_uint64(kind):
            above = pc.greater(ids, pa.scalar(INT64_MAX, pa.uint64()))
            ids = _refuse(above, ids, place, locate, "is above 2**63 - 1")
        return ids.cast(pa.int64()).to_numpy(zero_copy_only=False)
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
    """``ids`` with 0 for the wrong ones, if they are not an error."""
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

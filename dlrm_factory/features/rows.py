"""Raw ids of all sparse features at once → rows of their tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import compress
from typing import Any

import numpy as np
import numpy.typing as npt

from dlrm_factory.config import SparseFeature
from dlrm_factory.features.bags import RawBags
from dlrm_factory.features.feature_error import FeatureError, shown
from dlrm_factory.features.ids import INT64_MAX, INT64_MIN, hash_int64, hash_keys
from dlrm_factory.features.vocabulary_rows import UNKNOWN, VocabularyRows
from dlrm_factory.features.weights import problem_with_bag

__all__ = ["RowEncoder"]

Int64 = npt.NDArray[np.int64]
Lengths = npt.NDArray[np.int32]


class RowEncoder:
    """Ids as JSON gives them → int64 rows. Ids go from the wire to the table as integers, never as floats.

    All features are encoded in one pass: a request of one sample has as many features as a request of many,
    and NumPy's price is by the call.
    """

    def __init__(
        self,
        features: Sequence[SparseFeature],
        num_embeddings: Sequence[int],
        vocabulary: VocabularyRows | None = None,
    ) -> None:
        """``vocabulary``: for features with ``ids: vocabulary``; None if there are none."""
        self.features = tuple(features)
        self._vocabulary = vocabulary
        self._looked_up = np.array([feature.ids == "vocabulary" for feature in features])
        self._num_embeddings = np.array(num_embeddings, dtype=np.int64)
        self._sizes = self._num_embeddings.view(np.uint64)[:, None]
        self._hashed = np.array([feature.ids == "hash" for feature in features], dtype=np.bool_)
        self._all_hashed, self._any_hashed = bool(self._hashed.all()), bool(self._hashed.any())
        self._only_index = all(feature.ids == "index" for feature in features)

    def are_rows(self, ids: Int64) -> bool:
        """Test whether ``ids``, int64 [F, B], are rows already, and each one of its table's. False says nothing."""
        # Seen as unsigned, a negative id is over any size. Counting is the quickest way to ask for any.
        return self._only_index and not np.count_nonzero(ids.view(np.uint64) >= self._sizes)

    def encode(self, bags: RawBags) -> Int64:
        """Rows int64 [len(bags.ids)], `DROPPED` for an id to leave out of its bag.

        FeatureError names the first id that its feature does not take.
        """
        try:
            rows = self._rows_of(bags)
        except (OverflowError, TypeError, UnicodeEncodeError):
            rows = None
        if rows is None:
            raise next(self.mistakes(bags))
        return rows

    def unknown_ids(self, rows: Int64, lengths: Lengths) -> Int64 | None:
        """Ids among encoded ``rows`` that their vocabularies lack, by feature: int64 [F]; None if there are none.

        ``lengths``: int32 [F, B] of the bags.
        """
        if self._vocabulary is None:
            return None
        counts = lengths.sum(axis=1)
        # `DROPPED` is over any bound once seen as unsigned.
        unknown = rows.view(np.uint64) >= np.repeat(self._vocabulary.known_rows.view(np.uint64), counts)
        if not np.count_nonzero(unknown):
            return None
        return np.bincount(np.repeat(np.arange(len(counts)), counts)[unknown], minlength=len(counts))

    def mistakes(self, bags: RawBags) -> Iterator[FeatureError]:
        """Every id that its feature does not take, feature after feature."""
        ids = bags.ids.tolist() if isinstance(bags.ids, np.ndarray) else bags.ids
        at = 0
        for f, (feature, rows) in enumerate(zip(self.features, self._num_embeddings.tolist(), strict=True)):
            lengths, first = bags.lengths[f].tolist(), at
            unknown = self._unknown(f, ids[at : at + sum(lengths)])
            for sample, length in enumerate(lengths):
                for position, value in enumerate(ids[at : at + length]):
                    wrong = _problem_with(value, feature, rows)
                    if wrong is None and at + position - first in unknown:
                        wrong = _problem_with_unknown(value, feature)
                    if wrong:
                        message = f'sparse feature "{feature.name}": {wrong}'
                        yield FeatureError(
                            message,
                            feature=feature.name,
                            sample=sample,
                            position=position,
                            part=None if isinstance(value, dict) else "ids",
                        )
                at += length

    def _unknown(self, f: int, ids: Sequence[Any]) -> set[int]:
        """Places of the ids of feature ``f`` that its vocabulary should have and does not."""
        if self._vocabulary is None or not self._looked_up[f]:
            return set()
        feature = self.features[f]
        sound = [i for i, value in enumerate(ids) if _problem_with(value, feature, 0) is None]
        rows = self._vocabulary.rows([ids[i] for i in sound], np.full(len(sound), f))
        return {sound[i] for i in np.flatnonzero(rows == UNKNOWN)}

    def _rows_of(self, bags: RawBags) -> Int64 | None:
        """Rows, or None where an id is wrong; so are OverflowError, TypeError and UnicodeEncodeError."""
        if not bags.kinds <= {int, str}:
            return None
        features, samples = bags.lengths.shape
        counts = np.full(features, samples) if bags.one_each else bags.lengths.sum(axis=1)
        textual = str in bags.kinds
        if self._vocabulary is None:
            return self._computed(bags.ids, textual, counts)
        feature = np.repeat(np.arange(features), counts)
        looked_up = self._looked_up[feature]
        rows = np.empty(len(feature), dtype=np.int64)
        rows[looked_up] = self._vocabulary.rows(_pick(bags.ids, looked_up), feature[looked_up])
        if (rows[looked_up] == UNKNOWN).any():
            return None
        if not self._looked_up.all():
            rest = np.where(self._looked_up, 0, counts)
            computed = self._computed(_pick(bags.ids, ~looked_up), textual, rest)
            if computed is None:
                return None
            rows[~looked_up] = computed
        return rows

    def _computed(self, ids: Sequence[Any] | Int64, textual: bool, counts: Int64) -> Int64 | None:
        """Rows of ``index`` and ``hash`` features, or None. ``textual``: some ids may be strings."""
        sizes = np.repeat(self._num_embeddings, counts)
        if isinstance(ids, np.ndarray) or not textual:
            rows = self._of_integers(ids, counts, sizes)
        else:
            rows = self._of_text(ids, counts, sizes)
        # Seen as unsigned, a negative row is over any size: one comparison checks both ends.
        in_range = (rows.view(np.uint64) < sizes.view(np.uint64)).all()
        return rows if in_range else None

    def _of_integers(self, ids: Sequence[int] | Int64, counts: Int64, sizes: Int64) -> Int64:
        values = ids if isinstance(ids, np.ndarray) else np.fromiter(ids, dtype=np.int64, count=len(ids))
        if self._all_hashed:
            return hash_int64(values, sizes)
        if self._any_hashed:
            hashed = np.repeat(self._hashed, counts)
            values = values.copy()
            values[hashed] = hash_int64(values[hashed], sizes[hashed])
        return values

    def _of_text(self, ids: Sequence[int | str], counts: Int64, sizes: Int64) -> Int64:
        """Rows where some ids are strings; TypeError if those are of an ``index`` feature."""
        unsigned = sizes.view(np.uint64)
        if self._all_hashed:
            return (hash_keys(ids) % unsigned).view(np.int64)
        hashed = np.repeat(self._hashed, counts)
        index = list(compress(ids, ~hashed))
        if str in set(map(type, index)):
            raise TypeError
        rows = np.empty(len(ids), dtype=np.int64)
        rows[~hashed] = np.array(index, dtype=np.int64)
        rows[hashed] = (hash_keys(list(compress(ids, hashed))) % unsigned[hashed]).view(np.int64)
        return rows


def _pick(ids: Sequence[Any] | Int64, mask: npt.NDArray[np.bool_]) -> Sequence[Any] | Int64:
    return ids[mask] if isinstance(ids, np.ndarray) else list(compress(ids, mask))


def _problem_with_unknown(value: int | str, feature: SparseFeature) -> str:
    return (
        f'id {shown(value)} is not in the vocabulary of table "{feature.table}"; send an id that training has '
        "seen, or declare out_of_vocabulary: drop, or a number of rows for such ids"
    )


def _problem_with(value: Any, feature: SparseFeature, num_embeddings: int) -> str | None:
    if isinstance(value, str):
        return _problem_with_text(value, feature)
    if isinstance(value, bool) or not isinstance(value, int):
        return _problem_with_kind(value, feature)
    if feature.ids == "index" and not 0 <= value < num_embeddings:
        return (
            f"id {shown(value)} is out of range [0, {num_embeddings}); send a row of table "
            f'"{feature.table}", or declare ids: hash for ids of any size'
        )
    if not INT64_MIN <= value <= INT64_MAX:
        return f"id {shown(value)} is out of int64's range [-2**63, 2**63); send it as a string"
    return None


def _problem_with_text(value: str, feature: SparseFeature) -> str | None:
    if feature.ids == "index":
        return f"id {shown(value)} is a string, but ids are rows here; send an integer, or declare ids: hash"
    try:
        value.encode()
    except UnicodeEncodeError:
        return f"id {shown(value)} is not valid Unicode, it holds half a surrogate pair; send valid UTF-8"
    return None


def _problem_with_kind(value: Any, feature: SparseFeature) -> str:
    allowed = "an integer" if feature.ids == "index" else "an integer or a string"
    if isinstance(value, dict):
        return _problem_with_object(value, feature, allowed)
    if value is None:
        return "null is not an id; leave it out of the bag, or send null for the whole bag"
    if isinstance(value, bool):
        return f"id {shown(value)} is a boolean; send {allowed}"
    if isinstance(value, float):
        return f"id {shown(value)} is a floating-point number, which cannot hold every id; send {allowed}"
    return f"{shown(value)} is not an id; send {allowed}, or a flat list of them"


def _problem_with_object(value: dict[str, Any], feature: SparseFeature, allowed: str) -> str:
    if feature.weighted:
        return problem_with_bag(value) or f"an object is not an id; send {allowed}"
    if "weights" in value:
        return "the feature takes no weights; send a list of ids, or declare weighted: true"
    return f"an object is not an id; send {allowed}, or a flat list of them"

"""Record of the ids that training saw, by feature: a bit or some a table row, which travels with a model.

A feature with ``ids: index`` or ``vocabulary`` has one bit for each row of its table. An id without a row of its own
in the vocabulary counts as not seen. A feature with ``ids: hash`` has a Bloom filter of its ids' hashes (Bloom,
Communications of the ACM 1970): rows would not do, as several ids share one. A filter never misses an id that was seen,
and takes some that were not for seen: `SeenIds.false_share` of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from dlrm_factory.config.declaration import DLRMDeclaration, SparseFeature
from dlrm_factory.errors import WeightsError
from dlrm_factory.features.ids import mix_int64

__all__ = ["SEEN_IDS_FILE", "SeenIds", "is_seen_ids", "read_seen_ids", "write_seen_ids"]

SEEN_IDS_FILE = "seen_ids.safetensors"
_PREFIX = "seen_ids."

# A filter has at least 8 bits a table row, so 12 an id in a table that `dlrm init` drafts: 0.7% of false ones at most.
MIN_FILTER_BYTES, MAX_FILTER_BYTES = 1 << 16, 1 << 26
_HASHES = 4
_ONES = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(axis=1, dtype=np.uint8)

Int64 = npt.NDArray[np.int64]
UInt8 = npt.NDArray[np.uint8]
UInt64 = npt.NDArray[np.uint64]


class SeenIds:
    """Record of one model.

    Ids are given as rows of the feature's table, int64 [n], for ``index`` and ``vocabulary``, and for ``hash`` as their
    64-bit hashes, uint64 [n], see `dlrm_factory.features.ids`.
    """

    def __init__(self, declaration: DLRMDeclaration, bits: Mapping[str, UInt8] | None = None) -> None:
        """``bits``: of a record made before, uint8, of each sparse feature; None for one that is empty."""
        self._features = tuple(declaration.sparse_features)
        sizes = [_bytes_of(feature, declaration) for feature in self._features]
        self._bits = [
            np.zeros(size, dtype=np.uint8) if bits is None else bits[feature.name]
            for feature, size in zip(self._features, sizes, strict=True)
        ]
        # Rows from there on are shared by ids that are not in the vocabulary.
        self._rows = [
            declaration.vocabulary_room(feature.table)
            if feature.ids == "vocabulary"
            else declaration.table(feature.table).num_embeddings
            for feature in self._features
        ]

    def add(self, feature: int, ids: Int64 | UInt64) -> None:
        """Record ``ids`` of the feature at place ``feature``."""
        new = ids[~self.has(feature, ids)]
        if self._features[feature].ids != "hash":
            new = new[new < self._rows[feature]]
        for places in self._places(feature, new):
            np.bitwise_or.at(self._bits[feature], places >> 3, _bit(places))

    def has(self, feature: int, ids: Int64 | UInt64) -> npt.NDArray[np.bool_]:
        """Mask of the ``ids`` that training saw, bool [n]."""
        bits, found = self._bits[feature], np.ones(len(ids), dtype=np.bool_)
        if self._features[feature].ids != "hash":
            found = ids < self._rows[feature]
            ids = np.where(found, ids, 0)
        for places in self._places(feature, ids):
            found &= (bits[places >> 3] & _bit(places)) != 0
        return found

    def false_share(self, feature: int) -> float:
        """Share of the ids not seen that count as seen; 0 where none does."""
        if self._features[feature].ids != "hash":
            return 0.0
        bits = self._bits[feature]
        return float((_ONES[bits].sum(dtype=np.int64) / (8 * len(bits))) ** _HASHES)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Everything under ``seen_ids.…`` keys, for a safetensors file."""
        return {
            _PREFIX + feature.name: torch.from_numpy(bits)
            for feature, bits in zip(self._features, self._bits, strict=True)
        }

    @staticmethod
    def of_tensors(
        tensors: Mapping[str, torch.Tensor], declaration: DLRMDeclaration, source: str
    ) -> SeenIds | None:
        """Make the record that gave `tensors`; None if there is none among ``tensors``.

        WeightsError, naming ``source``, if it is of other features or sizes than declared.
        """
        bits = {
            key.removeprefix(_PREFIX): tensor.numpy() for key, tensor in tensors.items() if is_seen_ids(key)
        }
        if not bits:
            return None
        sizes = {feature.name: _bytes_of(feature, declaration) for feature in declaration.sparse_features}
        if any(array.dtype != np.uint8 or array.ndim != 1 for array in bits.values()) or sizes != {
            name: len(array) for name, array in bits.items()
        }:
            raise WeightsError(
                f"{source}: its record of the ids that training saw is not of the declared features"
            )
        return SeenIds(declaration, bits)

    def _places(self, feature: int, ids: Int64 | UInt64) -> Iterator[Int64]:
        """Places of bits that stand for ``ids``: one each, or `_HASHES` in a filter."""
        if self._features[feature].ids != "hash":
            yield ids.astype(np.int64)
            return
        keys = ids.astype(np.uint64)
        # Kirsch, Mitzenmacher: Less Hashing, Same Performance, ESA 2006.
        steps = mix_int64(keys.view(np.int64)) | np.uint64(1)
        mask = np.uint64(8 * len(self._bits[feature]) - 1)  # sizes are powers of two
        for i in range(_HASHES):
            yield ((keys + np.uint64(i) * steps) & mask).view(np.int64)


def _bytes_of(feature: SparseFeature, declaration: DLRMDeclaration) -> int:
    rows = declaration.table(feature.table).num_embeddings
    if feature.ids == "hash":
        return min(max(1 << (rows - 1).bit_length(), MIN_FILTER_BYTES), MAX_FILTER_BYTES)
    return -(-rows // 8)


def _bit(places: Int64) -> UInt8:
    return np.left_shift(1, places & 7).astype(np.uint8)


def is_seen_ids(key: str) -> bool:
    """True if the tensor called ``key`` belongs to such a record."""
    return key.startswith(_PREFIX)


def read_seen_ids(folder: Path, declaration: DLRMDeclaration) -> SeenIds | None:
    """The record in a folder of sealed weights; None if it has none. WeightsError if damaged."""
    path = folder / SEEN_IDS_FILE
    if not path.is_file():
        return None
    try:
        return SeenIds.of_tensors(load_file(path), declaration, str(path))
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise WeightsError(f"{path}: is not a safetensors file: {error}") from None


def write_seen_ids(seen: SeenIds, folder: Path) -> None:
    """Keep ``seen`` with the sealed weights in ``folder``."""
    save_file(seen.tensors(), folder / SEEN_IDS_FILE)

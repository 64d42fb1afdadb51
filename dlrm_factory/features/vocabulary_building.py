"""Ids in the order of their rows → the bytes of a vocabulary file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain

import numpy as np
import numpy.typing as npt
import xxhash

from dlrm_factory.features.ids import hash_keys, mix_int64
from dlrm_factory.features.text_column import text_bytes
from dlrm_factory.features.vocabulary import (
    KIND,
    Layout,
    StoredVocabulary,
    Vocabularies,
    VocabularyHeader,
    bucket_of,
    salts,
)
from dlrm_factory.host.checked_file import align

__all__ = ["build_vocabularies"]

Ids = Sequence[int | str] | npt.NDArray[np.int64]
UInt64 = npt.NDArray[np.uint64]

_NO_DIGEST = "0" * 16


def build_vocabularies(ids: Mapping[str, Ids]) -> Vocabularies:
    """The vocabularies of some tables, in memory; their ``data`` is what a file holds.

    Args:
        ids: by table, int64 or text, the first of which gets row 0, the next row 1, ….

    Raises:
        ValueError: an id is given twice. 17 and "17" are one id.
    """
    tables = [StoredVocabulary(table, len(each)) for table, each in ids.items()]
    keys = _keys(list(ids.values()))
    order = np.argsort(keys, kind="stable")
    texts = list(chain.from_iterable(_texts(each) for each in ids.values()))
    _check_distinct(keys[order], order, texts, np.repeat(np.arange(len(tables)), [t.entries for t in tables]))
    lengths = np.fromiter(map(len, texts), dtype=np.int64, count=len(texts))
    # About two keys a bucket: more buckets would cost memory, fewer would cost steps.
    layout = Layout(
        entries=len(keys), bits=max(1, (len(keys) // 3).bit_length()), text_bytes=int(lengths.sum())
    )
    buckets = np.bincount(bucket_of(keys, layout.bits), minlength=2**layout.bits)
    parts: dict[str, npt.NDArray[np.generic]] = {
        "keys": keys[order],
        "entries": order,
        "buckets": np.concatenate(([0], np.cumsum(buckets))),
        "offsets": np.concatenate(([0], np.cumsum(lengths))),
        "texts": np.frombuffer(b"".join(texts), dtype=np.uint8),
    }
    return Vocabularies(_file(tables, layout, parts))


def _keys(ids: Sequence[Ids]) -> UInt64:
    salted = [
        (mix_int64(each) if isinstance(each, np.ndarray) else hash_keys(each)) ^ salt
        for each, salt in zip(ids, salts(len(ids)), strict=True)
    ]
    return np.concatenate(salted) if salted else np.empty(0, dtype=np.uint64)


def _texts(ids: Ids) -> Sequence[bytes]:
    return [b""] * len(ids) if isinstance(ids, np.ndarray) else list(map(text_bytes, ids))


def _check_distinct(
    keys: UInt64, order: npt.NDArray[np.int64], texts: list[bytes], tables: npt.NDArray[np.int64]
) -> None:
    """ValueError if two entries of one table are one id. ``keys`` are sorted, by ``order``."""
    if len(np.unique(keys)) == len(keys):
        return
    seen: dict[int, set[tuple[int, bytes]]] = {}
    again = np.flatnonzero(keys[1:] == keys[:-1])
    for i in np.union1d(again, again + 1).tolist():
        entry = int(order[i])
        found = seen.setdefault(int(keys[i]), set())
        identity = (int(tables[entry]), texts[entry])
        if identity in found:
            raise ValueError(f"an id is given twice: entry {entry}")
        found.add(identity)


def _file(
    tables: list[StoredVocabulary], layout: Layout, parts: Mapping[str, npt.NDArray[np.generic]]
) -> memoryview:
    head = KIND.encode(VocabularyHeader(tables, layout, _NO_DIGEST))
    begins, size = layout.spans(len(head))
    data = bytearray(size)
    for name, (dtype, length) in layout.parts().items():
        np.frombuffer(data, dtype=dtype, count=length, offset=begins[name])[:] = parts[name]
    digest = xxhash.xxh3_64_hexdigest(memoryview(data)[align(len(head)) :])
    data[: len(head)] = KIND.encode(VocabularyHeader(tables, layout, digest))
    return memoryview(data).toreadonly()

"""Raw ids → rows of an embedding table. The same functions serve training and requests.

``index``
    An id is a row already.
``hash``
    row = H(id) mod num_embeddings, computed in unsigned 64 bits, where

    * H of an int64 is SplitMix64's finaliser of its two's complement bits
      (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, OOPSLA 2014);
    * a string that is the canonical decimal form of an int64 (``"17"``, ``"-3"``; not ``"017"`` or ``"+3"``)
      hashes as that integer, so that 17 and "17" are one id, whichever a CSV reader or a client makes of it;
    * H of any other string is XXH64 of its UTF-8 bytes with seed 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress
from typing import cast

import numpy as np
import numpy.typing as npt
import xxhash

__all__ = [
    "INT64_MAX",
    "INT64_MIN",
    "canonical_int",
    "hash_ids",
    "hash_int64",
    "hash_keys",
    "integers_among",
    "mix_int64",
    "unmix_int64",
]

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1
_MAX_DIGITS = len(str(INT64_MIN))

Int64 = npt.NDArray[np.int64]
UInt64 = npt.NDArray[np.uint64]


def canonical_int(text: str) -> int | None:
    """The int64 whose canonical decimal form is ``text``, else None."""
    if len(text) > _MAX_DIGITS or (text[:1] == "0" and text != "0"):
        return None
    try:
        number = int(text)
    except ValueError:
        return None
    return number if str(number) == text and INT64_MIN <= number <= INT64_MAX else None


def hash_int64(ids: Int64, num_embeddings: int | Int64) -> Int64:
    """Rows of integer ids. ``ids``: int64 of any shape; returns int64 of that shape in [0, num_embeddings).

    ``num_embeddings`` is one size, or one an id.
    """
    return (mix_int64(ids) % np.asarray(num_embeddings, dtype=np.uint64)).astype(np.int64)


def hash_ids(ids: Sequence[int | str], num_embeddings: int) -> Int64:
    """Rows of a mix of int64 and string ids. Returns int64 [len(ids)]."""
    return (hash_keys(ids) % np.uint64(num_embeddings)).astype(np.int64)


def hash_keys(ids: Sequence[int | str]) -> UInt64:
    """H of a mix of int64 and string ids, before the modulo. Returns uint64 [len(ids)].

    OverflowError for an integer outside int64, UnicodeEncodeError for a string with half a surrogate pair.
    """
    kinds = set(map(type, ids))
    if str not in kinds:
        return mix_int64(np.fromiter(cast("Sequence[int]", ids), dtype=np.int64, count=len(ids)))
    if kinds == {str}:
        return _hash_text(cast("Sequence[str]", ids))
    textual = [isinstance(raw, str) for raw in ids]
    texts = cast("list[str]", list(compress(ids, textual)))
    mask = np.array(textual)
    keys = np.empty(len(ids), dtype=np.uint64)
    keys[mask] = _hash_text(texts)
    keys[~mask] = mix_int64(np.array(list(compress(ids, ~mask)), dtype=np.int64))
    return keys


def _hash_text(texts: Sequence[str]) -> UInt64:
    keys = np.fromiter(map(xxhash.xxh64_intdigest, map(str.encode, texts)), dtype=np.uint64, count=len(texts))
    numbers = integers_among(texts)
    if numbers:
        keys[list(numbers)] = mix_int64(np.array(list(numbers.values()), dtype=np.int64))
    return keys


def integers_among(texts: Sequence[str]) -> dict[int, int]:
    """Int64 of each text that is the canonical decimal form of one, by its place."""
    # Few strings are numbers, and these two tests are far cheaper than reading one.
    likely = list(compress(range(len(texts)), map(str.isdecimal, texts)))
    if "-" in "".join(texts):
        likely += [i for i, text in enumerate(texts) if text[:1] == "-"]
    return {i: number for i in likely if (number := canonical_int(texts[i])) is not None}


def mix_int64(ids: Int64) -> UInt64:
    """SplitMix64's finaliser of int64 of any shape."""
    with np.errstate(over="ignore"):
        z = ids.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def unmix_int64(keys: UInt64) -> Int64:
    """The int64 whose `mix_int64` is each of ``keys``: it is one to one."""
    with np.errstate(over="ignore"):
        z = keys ^ (keys >> np.uint64(31)) ^ (keys >> np.uint64(62))
        z = z * np.uint64(pow(0x94D049BB133111EB, -1, 2**64))
        z = z ^ (z >> np.uint64(27)) ^ (z >> np.uint64(54))
        z = z * np.uint64(pow(0xBF58476D1CE4E5B9, -1, 2**64))
        z = z ^ (z >> np.uint64(30)) ^ (z >> np.uint64(60))
        return (z - np.uint64(0x9E3779B97F4A7C15)).astype(np.int64)

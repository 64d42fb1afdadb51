"""How many different values there are, in bounded memory."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["MOST_EXACT", "Distinct"]

UInt64 = npt.NDArray[np.uint64]

MOST_EXACT = 1 << 20
_BITS = 14  # 16,384 registers: a standard error of 1.04 / sqrt(16384) = 0.8%


class Distinct:
    """Counts by 64-bit hashes: exactly up to 1,048,576 of them, then by HyperLogLog within some percent.

    Flajolet, Fusy, Gandouet, Meunier: HyperLogLog, AofA 2007. With hashes of 64 bits its correction for large counts
    is not needed, and small ones are counted exactly.
    """

    def __init__(self) -> None:
        self._seen: UInt64 | None = np.empty(0, dtype=np.uint64)
        self._registers = np.zeros(1 << _BITS, dtype=np.uint8)

    def add(self, hashes: UInt64) -> None:
        """Take uint64 hashes whose bits are all as good as random."""
        if self._seen is not None:
            self._seen = np.union1d(self._seen, hashes)
            if len(self._seen) <= MOST_EXACT:
                return
            hashes, self._seen = self._seen, None
        place = (hashes >> np.uint64(64 - _BITS)).astype(np.int64)
        np.maximum.at(self._registers, place, _first_one(hashes << np.uint64(_BITS)))

    @property
    def exact(self) -> bool:
        """Whether `count` is no estimate."""
        return self._seen is not None

    @property
    def count(self) -> int:
        """Different values so far."""
        if self._seen is not None:
            return len(self._seen)
        size = len(self._registers)
        alpha = 0.7213 / (1 + 1.079 / size)
        return round(alpha * size * size / float(np.exp2(-self._registers.astype(np.float64)).sum()))


def _first_one(bits: UInt64) -> npt.NDArray[np.uint8]:
    """Place of the first 1 from the left, from 1; of no 1 at all one more than the bits there are."""
    # A float's exponent is where its first 1 is; the upper 53 bits fit one exactly.
    _, exponents = np.frexp((bits >> np.uint64(11)).astype(np.float64))
    places = 53 - exponents + 1
    return np.where(bits >> np.uint64(11) == 0, 64 - _BITS + 1, places).astype(np.uint8)

"""Split of requests between the default version and a canary, by a hash of a key, so that a user keeps one version.

The hash is that of nginx's ``split_clients``: a user gets the same version by the client library and by nginx.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dlrm_factory.tools.client.errors import ClientError

__all__ = ["Canary", "CanaryFile", "CanarySource", "canary_source", "hundredths"]

_MASK = 0xFFFFFFFF
_MULTIPLIER = 0x5BD1E995
_PARTS = 10_000  # nginx knows hundredths of a percent
_LOOK_EVERY_S = 0.5


@dataclass(frozen=True, kw_only=True)
class Canary:
    """Version that is asked in place of the default one, for a share of the keys.

    Args:
        version: of the model.
        share: from 0 to 1, in steps of 0.0001.
    """

    version: str
    share: float

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ClientError(f"the share of a canary is {self.share}; give 0 to 1, as in 0.05 for 5 %")

    def version_for(self, key: str) -> str | None:
        """The canary's version for the keys of its share, None (the default version) for the others, and for ""."""
        if not key:
            return None
        # In whole numbers, as nginx does.
        bound = hundredths(self.share) * _MASK // _PARTS
        return self.version if _murmur2(key.encode()) < bound else None


class CanaryFile:
    """Canary that `dlrm rollout` writes into a server's run directory; it is looked at again twice a second."""

    def __init__(self, path: str | Path, model: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._path, self._model, self._clock = Path(path), model, clock
        self._due = 0.0
        self._stamp: tuple[int, int] | None = None
        self._canary: Canary | None = None

    def version_for(self, key: str) -> str | None:
        """Do as `Canary.version_for`; return None while there is no canary."""
        now = self._clock()
        if now >= self._due:
            self._due = now + _LOOK_EVERY_S
            self._look()
        return None if self._canary is None else self._canary.version_for(key)

    def _look(self) -> None:
        try:
            found = self._path.stat()
            stamp = (found.st_mtime_ns, found.st_ino)
            if stamp != self._stamp:
                self._canary = _read(self._path, self._model)
                self._stamp = stamp
        except (OSError, ValueError, KeyError, TypeError, AttributeError, ClientError):
            self._canary, self._stamp = None, None


CanarySource = Canary | CanaryFile


def canary_source(canary: Canary | str | Path | None, model: str) -> CanarySource | None:
    """The source that a client's argument ``canary`` means."""
    return CanaryFile(canary, model) if isinstance(canary, str | Path) else canary


def hundredths(share: float) -> int:
    """Hundredths of a percent that are nearest to ``share``: nginx knows no smaller ones."""
    return round(share * _PARTS)


def _murmur2(data: bytes) -> int:
    """MurmurHash2 of 32 bits, seed 0, as ngx_murmur_hash2."""
    size = len(data)
    value = size & _MASK
    whole = size - size % 4
    for i in range(0, whole, 4):
        part = int.from_bytes(data[i : i + 4], "little") * _MULTIPLIER & _MASK
        part = (part ^ part >> 24) * _MULTIPLIER & _MASK
        value = value * _MULTIPLIER & _MASK ^ part
    if size > whole:
        value = (value ^ int.from_bytes(data[whole:], "little")) * _MULTIPLIER & _MASK
    value = (value ^ value >> 13) * _MULTIPLIER & _MASK
    return value ^ value >> 15


def _read(path: Path, model: str) -> Canary | None:
    found = json.loads(path.read_text(encoding="utf-8")).get(model, {}).get("canary")
    return None if found is None else Canary(version=str(found["version"]), share=float(found["share"]))

"""File of one worker's metrics: the worker maps and writes it, whoever exports metrics reads it at any time.

::

    <pid>.metrics
    | magic | length of the head | head: JSON | to a multiple of 8 | float64 ... |
      8       8                    length                            families, then the windows of drift

The head says what each number is, so that a file of another version of this project can be read too. Each number is
written by one worker alone, and whole: a reader may see a count whose sum comes a moment later, and nothing worse.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from dlrm_factory.host.process import process_start
from dlrm_factory.monitoring.families import Family

__all__ = [
    "SUFFIX",
    "Drift",
    "DriftPart",
    "FamilyPlace",
    "Head",
    "MetricsFile",
    "WorkerReading",
    "read_metrics_file",
    "remove_orphans",
]

SUFFIX = ".metrics"
_MAGIC = b"DLRMMET1"
_AT_LENGTH, _AT_HEAD = 8, 16
_MAX_HEAD = 16 << 20
_MAX_NUMBERS = 1 << 26

Float64 = npt.NDArray[np.float64]


class FamilyPlace(msgspec.Struct, frozen=True, kw_only=True):
    """A family, its series' label values, and the place of its first number; one series stands after another."""

    family: Family
    series: list[tuple[str, ...]]
    at: int


class DriftPart(msgspec.Struct, frozen=True, kw_only=True):
    """Bins of one feature, or of the scores, with the share of each in training. They stand one part after another."""

    kind: str  # dense, sparse or score
    feature: str
    shares: list[float]


class Drift(msgspec.Struct, frozen=True, kw_only=True):
    """Ring of blocks, each | number of its time | samples | counts of every part's bins |.

    A block holds ``block_seconds`` of time; the number of its time is Unix time / block_seconds, 0 in one never used.
    """

    at: int
    blocks: int
    block_seconds: float
    parts: list[DriftPart]

    @property
    def width(self) -> int:
        """Numbers of a block."""
        return 2 + sum(len(part.shares) for part in self.parts)


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """Head of a file.

    Fields:
        model, version: that the worker serves.
        pid, process_start: of the worker; a pid alone may be used again.
        model_dir: folder of its archive.
        families: of metrics.
        drift: None where the archive has no reference.
    """

    model: str
    version: str
    pid: int
    process_start: int
    model_dir: str
    families: list[FamilyPlace]
    drift: Drift | None = None


class MetricsFile:
    """Numbers of one worker, mapped to be written."""

    def __init__(
        self,
        path: Path,
        *,
        model: str,
        version: str,
        model_dir: str,
        families: Mapping[Family, Sequence[tuple[str, ...]]],
        drift: Sequence[DriftPart] = (),
        blocks: int = 1,
        block_seconds: float = 1.0,
    ) -> None:
        """Make ``path`` with all numbers 0. OSError if it cannot be."""
        places, at = [], 0
        for family, series in families.items():
            places.append(FamilyPlace(family=family, series=list(series), at=at))
            at += len(series) * family.width
        found = Drift(at=at, blocks=blocks, block_seconds=block_seconds, parts=list(drift)) if drift else None
        self.head = Head(
            model=model,
            version=version,
            pid=os.getpid(),
            process_start=process_start(os.getpid()),
            model_dir=model_dir,
            families=places,
            drift=found,
        )
        numbers = at + (found.blocks * found.width if found else 0)
        text = msgspec.json.encode(self.head)
        first = _first_number(len(text))
        partial = path.with_suffix(".partial")
        handle = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            os.truncate(handle, first + 8 * numbers)
            self._map = mmap.mmap(handle, first + 8 * numbers)
        finally:
            os.close(handle)
        self._map[: _AT_HEAD + len(text)] = _MAGIC + len(text).to_bytes(8, "little") + text
        self._numbers = np.frombuffer(self._map, dtype=np.float64, offset=first)
        self._of_family = {
            place.family.name: self._numbers[
                place.at : place.at + len(place.series) * place.family.width
            ].reshape(-1, place.family.width)
            for place in places
        }
        # Only now, so that nobody reads half of a head.
        partial.rename(path)

    def numbers(self, family: Family) -> Float64:
        """Numbers of ``family`` to be written, float64 [series, width]."""
        return self._of_family[family.name]

    def drift_blocks(self) -> Float64:
        """Blocks of `Drift` to be written, float64 [blocks, width]; none without a reference."""
        drift = self.head.drift
        if drift is None:
            return np.empty((0, 2))
        return self._numbers[drift.at :].reshape(drift.blocks, drift.width)


class WorkerReading(msgspec.Struct, frozen=True, kw_only=True):
    """One worker's metrics at one moment. ``numbers``: float64, a copy."""

    head: Head
    numbers: Any

    def family(self, place: FamilyPlace) -> Float64:
        """Numbers of a family, float64 [series, width]."""
        size = len(place.series) * place.family.width
        found: Float64 = self.numbers[place.at : place.at + size]
        return found.reshape(-1, place.family.width)

    def lives(self) -> bool:
        """True if the worker still runs."""
        return self.head.process_start != 0 and process_start(self.head.pid) == self.head.process_start

    def drift_window(self, window_seconds: float, now: float | None = None) -> tuple[float, Float64]:
        """Samples of the last ``window_seconds``, whole blocks of time, and the counts of all bins [width - 2]."""
        drift = self.head.drift
        if drift is None:
            return 0.0, np.empty(0)
        blocks = self.numbers[drift.at : drift.at + drift.blocks * drift.width].reshape(-1, drift.width)
        this = (time.time() if now is None else now) // drift.block_seconds
        recent = blocks[:, 0] > this - max(1.0, window_seconds / drift.block_seconds)
        summed = blocks[recent & (blocks[:, 0] <= this)].sum(axis=0)
        return float(summed[1]), summed[2:]


def read_metrics_file(path: Path) -> WorkerReading:
    """Metrics in ``path`` as they are now. OSError, or ValueError where it is no such file."""
    with path.open("rb") as file:
        start = file.read(_AT_HEAD)
        length = int.from_bytes(start[_AT_LENGTH:], "little")
        if start[:_AT_LENGTH] != _MAGIC or length > _MAX_HEAD:
            raise ValueError(f"{path} holds no metrics of a worker")
        try:
            head = msgspec.json.decode(file.read(length), type=Head)
        except msgspec.MsgspecError as error:
            raise ValueError(f"{path} holds no metrics of a worker: {error}") from None
        file.seek(_first_number(length))
        numbers = np.frombuffer(file.read(8 * _MAX_NUMBERS), dtype=np.float64)
    if len(numbers) < _numbers_in(head):
        raise ValueError(f"{path} was cut short")
    return WorkerReading(head=head, numbers=numbers)


def remove_orphans(root: Path) -> None:
    """Remove files below ``root`` of workers that have ended and whose archive is gone, with what else they kept."""
    for path in root.glob(f"*/*{SUFFIX}"):
        with contextlib.suppress(OSError, ValueError):
            reading = read_metrics_file(path)
            if not reading.lives() and not Path(reading.head.model_dir).exists():
                for kept in path.parent.glob(f"{path.stem}.*"):
                    kept.unlink()


def _first_number(head_length: int) -> int:
    return -(-(_AT_HEAD + head_length) // 8) * 8


def _numbers_in(head: Head) -> int:
    ends = [place.at + len(place.series) * place.family.width for place in head.families]
    if head.drift is not None:
        ends.append(head.drift.at + head.drift.blocks * head.drift.width)
    return max(ends, default=0)

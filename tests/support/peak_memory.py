"""Greatest memory of this process during a block."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"


@dataclass
class Peak:
    """``growth``: bytes above what the process had before the block, mapped files counted."""

    growth: int = 0


@contextmanager
def peak_memory() -> Iterator[Peak]:
    """Measure a block; its test is skipped where the kernel keeps no peak to be reset."""
    try:
        _CLEAR.write_text(_RESET_PEAK)
    except OSError:
        pytest.skip("this kernel does not reset the peak of memory")
    before, peak = _status("VmRSS"), Peak()
    yield peak
    peak.growth = _status("VmHWM") - before


def _status(field: str) -> int:
    lines = _STATUS.read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{field}:"))

"""Byte sizes as people write them."""

from __future__ import annotations

import math
import re

__all__ = ["format_bytes", "parse_bytes"]

_UNITS = {"": 1, "B": 1}
for _power, _letter in enumerate("KMGT", start=1):
    _UNITS[f"{_letter}B"] = 1000**_power
    _UNITS[f"{_letter}IB"] = 1024**_power
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?I?B?)\s*", re.IGNORECASE)


def parse_bytes(text: str | int, *, least: int = 1) -> int:
    """``"80GB"`` → 80_000_000_000, ``"24GiB"`` → 25_769_803_776; a bare number is bytes.

    ValueError for other text, and below ``least`` bytes.
    """
    match = _SIZE.fullmatch(str(text))
    unit = match.group(2).upper() if match else ""
    size = float(match.group(1)) * _UNITS[unit] if match and unit in _UNITS else -1
    if not least <= size < math.inf:
        raise ValueError(f'"{text}" is not a size; write a number and a unit, e.g. 80GB or 24GiB')
    return int(size)


def format_bytes(size: float) -> str:
    """Bytes in the largest decimal unit that leaves at least 1: ``12.1 GB``."""
    for unit in ("B", "KB", "MB", "GB"):
        if abs(size) < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"

"""What this CPU can do, as far as compiled code depends on it."""

from __future__ import annotations

import functools
import platform
from pathlib import Path
from typing import Literal

import torch

__all__ = ["DTYPES", "Precision", "best_precision", "cpu_capability"]

Precision = Literal["fp32", "bf16"]

DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}

# Flags of /proc/cpuinfo with which bf16 matrix products are faster than fp32 ones.
_BF16_FLAGS = ("amx_bf16", "avx512_bf16")


@functools.cache
def _cpu_flags() -> frozenset[str]:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return frozenset()
    line = next((line for line in text.splitlines() if line.startswith(("flags", "Features"))), ":")
    return frozenset(line.partition(":")[2].split())


def best_precision() -> Precision:
    """``bf16`` where the CPU multiplies it natively, else ``fp32``."""
    return "bf16" if any(flag in _cpu_flags() for flag in _BF16_FLAGS) else "fp32"


def cpu_capability() -> str:
    """A name for everything of this CPU that compiled code may rely on; libraries are not shared across names."""
    vector = torch.backends.cpu.get_cpu_capability()
    native = ",".join(
        flag for flag in (*_BF16_FLAGS, "avx512f", "avx2", "avx512_vnni") if flag in _cpu_flags()
    )
    return f"{platform.machine()}/{vector}/{native}"

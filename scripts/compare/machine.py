"""Description of the machine and of the software that a comparison was run on."""

from __future__ import annotations

import os
import platform
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

__all__ = ["bf16_flags", "cpu_model", "describe_machine"]

_CPUINFO = Path("/proc/cpuinfo")
_BF16 = ("avx512_bf16", "amx_bf16")
_PACKAGES = (
    "torchserve-dlrm",
    "torch",
    "torchrec",
    "fbgemm-gpu-cpu",
    "fbgemm-gpu",
    "torchserve",
    "numpy",
    "fastapi",
    "uvicorn",
)


def describe_machine() -> dict[str, Any]:
    """CPU, its bf16 instructions, cores, load average, versions and the date, for JSON."""
    cpuinfo = _CPUINFO.read_text(encoding="utf-8", errors="replace")
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "cpu": cpu_model(cpuinfo),
        "bf16": bf16_flags(cpuinfo),
        "cores": len(os.sched_getaffinity(0)),
        "load_average": [round(each, 1) for each in os.getloadavg()],
        "versions": {"python": platform.python_version()} | _versions(),
    }


def cpu_model(cpuinfo: str) -> str:
    """Model name in the text of ``/proc/cpuinfo``, with family and model numbers, which say more of a guest's CPU."""
    fields = _first_processor(cpuinfo)
    if "model name" not in fields:
        return platform.machine()
    return (
        f"{fields['model name']} (family {fields.get('cpu family', '?')}, model {fields.get('model', '?')})"
    )


def bf16_flags(cpuinfo: str) -> list[str]:
    """The instruction sets that multiply bfloat16; empty without one."""
    flags = _first_processor(cpuinfo).get("flags", "").split()
    return [flag for flag in _BF16 if flag in flags]


def _first_processor(cpuinfo: str) -> dict[str, str]:
    lines = cpuinfo.split("\n\n", 1)[0].splitlines()
    pairs = (line.partition(":") for line in lines)
    return {name.strip(): value.strip() for name, _, value in pairs}


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found

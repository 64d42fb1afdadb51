"""How much memory encoded rows may take before they go to disk."""

from __future__ import annotations

import os
from pathlib import Path

import psutil

__all__ = ["memory_for_rows"]

_SHARE = 0.3  # of all there is: the model, its optimiser and the reading of files need the rest
_AVAILABLE_SHARE = 0.8
_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def memory_for_rows() -> int:
    """Bytes for the rows of this process.

    30% of the machine's memory (or the container's), shared by the ranks of this host. That does not change from run
    to run, so neither does the order of training. A process of its own also keeps within 80% of what is free now; ranks
    do not, as they must all decide alike.
    """
    memory = psutil.virtual_memory()
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    most = int(_SHARE * min(memory.total, *_container_limits(memory.total)) / ranks)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return most
    return min(most, int(_AVAILABLE_SHARE * memory.available))


def _container_limits(otherwise: int) -> list[int]:
    limits = [otherwise]
    for path in _CGROUP_LIMITS:
        try:
            text = Path(path).read_text(encoding="ascii").strip()
        except OSError:
            continue
        if text.isdecimal():  # "max" is none
            limits.append(int(text))
    return limits

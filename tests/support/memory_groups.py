"""Control groups that bound the memory of processes, page cache included, as hosts of that much memory would."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")
_END_S = 10.0


@dataclass(frozen=True)
class MemoryGroup:
    """One control group."""

    folder: Path

    def enter(self) -> None:
        """Move this process into the group: pages that it touches first from now on count there."""
        (self.folder / "cgroup.procs").write_text(str(os.getpid()))


@contextlib.contextmanager
def memory_groups(count: int, limit: int) -> Iterator[list[MemoryGroup]]:
    """``count`` groups of ``limit`` bytes each, of version 1 or 2. OSError where none can be made."""
    version_1 = (_ROOT / "memory").is_dir()
    parent, field = (_ROOT / "memory", "memory.limit_in_bytes") if version_1 else (_ROOT, "memory.max")
    folders = [parent / f"dlrm-test-{os.getpid()}-{i}" for i in range(count)]
    try:
        for folder in folders:
            folder.mkdir()
            (folder / field).write_text(str(limit))
        yield [MemoryGroup(folder) for folder in folders]
    finally:
        for folder in folders:
            _remove(folder)


def _remove(folder: Path) -> None:
    """A group can be removed once the kernel has buried its processes."""
    end = time.monotonic() + _END_S
    while folder.is_dir():
        try:
            folder.rmdir()
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)

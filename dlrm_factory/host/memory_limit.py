"""Memory that this process may use."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

__all__ = ["memory_limit", "physical_memory"]

_PROC, _CGROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def physical_memory() -> int:
    """Bytes of main memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def memory_limit(*, membership: Path = _PROC, cgroups: Path = _CGROUPS) -> int:
    """Bytes of memory that this process and its page cache may take: the machine's, or less in a container.

    Control groups of version 1 and 2 are looked at, and those above a group. ``membership`` and ``cgroups``: where
    the kernel tells of them.
    """
    found = [physical_memory()]
    for file in _limit_files(membership, cgroups):
        try:
            found.append(int(file.read_text(encoding="ascii")))
        except (OSError, ValueError):  # there is no such file, or it says "max"
            continue
    return min(found)


def _limit_files(membership: Path, cgroups: Path) -> list[Path]:
    try:
        lines = membership.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    files = []
    for line in lines:
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers == "":
            root, name = cgroups, "memory.max"
        elif "memory" in controllers.split(","):
            root, name = cgroups / "memory", "memory.limit_in_bytes"
        else:
            continue
        group = PurePosixPath(path.lstrip("/"))
        files += [root / part / name for part in (group, *group.parents)]
    return files

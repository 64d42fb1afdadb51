"""Memory that this process may use."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

__all__ = ["memory_available", "memory_limit", "physical_memory"]

_PROC, _CGROUPS, _MACHINE = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"), Path("/proc/meminfo")
# Beside a group's limit: what it has taken, and of that the pages of files, some of which are no file's.
_TAKEN = {
    "memory.max": ("memory.current", "file", "shmem"),
    "memory.limit_in_bytes": ("memory.usage_in_bytes", "total_cache", "total_shmem"),
}


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


def memory_available(*, membership: Path = _PROC, cgroups: Path = _CGROUPS, machine: Path = _MACHINE) -> int:
    """Bytes of memory that a process may still take; pages of files count as free, for the kernel drops them.

    Of control groups the tightest counts. ``membership``, ``cgroups``, ``machine``: where the kernel tells of the
    process's groups, of all groups, and of the machine's memory.
    """
    found = [1024 * _fields(machine).get("MemAvailable:", physical_memory() // 1024)]
    for file in _limit_files(membership, cgroups):
        taken, files, shared = _TAKEN[file.name]
        try:
            limit = int(file.read_text(encoding="ascii"))
            used = int((file.parent / taken).read_text(encoding="ascii"))
        except (OSError, ValueError):
            continue
        fields = _fields(file.parent / "memory.stat")
        found.append(limit - used + max(fields.get(files, 0) - fields.get(shared, 0), 0))
    return max(min(found), 0)


def _fields(file: Path) -> dict[str, int]:
    """Numbers by name, of a file with a name and a number on each line."""
    try:
        words = [line.split() for line in file.read_text(encoding="ascii").splitlines()]
    except (OSError, ValueError):
        return {}
    return {each[0]: int(each[1]) for each in words if len(each) > 1 and each[1].isdecimal()}


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

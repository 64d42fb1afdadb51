"""Room in memory for two versions side by side: workers must fit, and tables should."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import psutil

from dlrm_factory.config import format_bytes
from dlrm_factory.errors import ArchiveError, ServingError
from dlrm_factory.host.memory_limit import memory_available
from dlrm_factory.tools.archive.listing import read_archive_listing
from dlrm_factory.tools.bench.memory.smaps import mapped_file, memory_of
from dlrm_factory.tools.rollout.removing import processes_of
from dlrm_factory.tools.rollout.words import count
from dlrm_factory.tools.server import ModelVersion, ServerState
from dlrm_factory.weights.seal import TABLE_FILE

__all__ = ["check_room"]


def check_room(
    archive: Path,
    old: ModelVersion,
    state: ServerState,
    *,
    may_lack: bool = False,
    tell: Callable[[str], None] = lambda _: None,
    available: int | None = None,
) -> None:
    """Check that the archive's workers fit in memory beside those of ``old``, as many and as large.

    Tables are mapped files: where those of both versions do not fit, pages are read again and again, and ``tell`` is
    called with a warning.

    Args:
        archive: of the new version.
        old: version that is served.
        state: of the server.
        may_lack: make a warning of the error too.
        tell: called with warnings.
        available: bytes that the server may still take; None asks the kernel.

    Raises:
        ServingError: the workers do not fit.
    """
    if available is None:
        available = memory_available(membership=Path(f"/proc/{state.pid}/cgroup"))
    wanted = max(old.wanted, 1)
    workers, old_tables = _memory(old, wanted, Path(state.tmp))
    if workers > available:
        problem = (
            f"a second version needs {format_bytes(workers)} for {count(wanted, 'worker')} as large as those of "
            f"{old.version}, and {format_bytes(available)} of memory are left: scale down, or make room"
        )
        if not may_lack:
            raise ServingError(f"{problem}; --may-lack-memory rolls it out all the same")
        tell(f"memory    warning: {problem}")
        return
    tables = old_tables + _table_bytes(archive)
    left = available - workers
    if tables > left:
        tell(
            f"memory    warning: the tables of both versions take {format_bytes(tables)}, and {format_bytes(left)} of "
            f"memory are left for them: answers may take longer until {old.version} is removed"
        )


def _memory(version: ModelVersion, wanted: int, temporary: Path) -> tuple[int, int]:
    """Bytes that processes of ``wanted`` workers like the version's share with nobody, and bytes of its tables."""
    own = tables = 0
    for process in processes_of(version, temporary):
        with contextlib.suppress(ServingError, OSError, psutil.Error):
            own += memory_of(process.pid, TABLE_FILE).own
            file = mapped_file(process.pid, TABLE_FILE)
            tables = tables if file is None else max(tables, file.stat().st_size)
    started = sum(worker.pid > 0 for worker in version.workers)
    return own * wanted // max(started, 1), tables


def _table_bytes(archive: Path) -> int:
    try:
        return read_archive_listing(archive).files.get(TABLE_FILE, 0)
    except ArchiveError:
        return 0

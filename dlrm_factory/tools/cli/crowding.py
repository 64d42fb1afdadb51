"""Whether workers and their threads are more than the cores they share."""

from __future__ import annotations

import os
from pathlib import Path

from dlrm_factory.errors import ArchiveError

__all__ = ["crowding"]


def crowding(archive: Path, workers: int, cores: int | None = None) -> str | None:
    """A warning if ``workers`` of the model in ``archive`` have more torch threads than ``cores`` (None: this
    process's), else None. None also for an archive that carries no declaration to ask.
    """
    # Brings torch, which `dlrm --help` need not wait for.
    from dlrm_factory.tools.archive import read_archive_declaration

    try:
        threads = read_archive_declaration(archive).serving.threads
    except ArchiveError:
        return None
    cores = cores or len(os.sched_getaffinity(0))
    if workers * threads <= cores:
        return None
    return (
        f"{_count(workers, 'worker')} of {_count(threads, 'thread')} share {_count(cores, 'core')}: no more requests "
        f"are answered than by {max(1, cores // threads)}, and each waits longer"
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"

"""Large files are read once to be checked, and this host remembers it: the next worker need not read them again."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import xxhash
from filelock import lock_descriptor

from dlrm_factory.host.cache import cache_folder

__all__ = ["check_once"]

_PASSED = "passed\n"
_SUFFIX = ".checked"
_KEPT_SECONDS = 30 * 24 * 3600
_MAX_STAMPS = 256


def check_once(paths: Sequence[Path], what: str, check: Callable[[], None], *, again: bool = False) -> bool:
    """Call ``check`` unless it has passed on this host for these very files. True if it was called.

    A file is the same while its device, inode, size and times of change are. Workers that start together wait for
    the first. Without a folder to remember in, every call checks.

    Args:
        paths: the files that ``check`` reads.
        what: what they are checked against; a pass counts for that alone.
        check: raises what it finds; then nothing is remembered.
        again: check in any case.
    """
    cache = cache_folder()
    stamp = None if cache is None else _open(cache / (_name(paths, what) + _SUFFIX))
    if cache is None or stamp is None:
        check()
        return True
    try:
        with contextlib.suppress(OSError):  # a disk that cannot lock: several may check at once
            # The stamp is its own lock, so that both are forgotten at once and no lock file is left over.
            lock_descriptor(stamp)
        # The stamp is written after the check: what a killed process leaves is empty, and counts for nothing.
        if not again and os.pread(stamp, len(_PASSED), 0) == _PASSED.encode():
            with contextlib.suppress(OSError):
                os.utime(stamp)
            return False
        os.ftruncate(stamp, 0)
        check()
        with contextlib.suppress(OSError):
            os.pwrite(stamp, _PASSED.encode(), 0)
        _forget_old(cache)
    finally:
        os.close(stamp)
    return True


def _name(paths: Sequence[Path], what: str) -> str:
    digest = xxhash.xxh3_128(what.encode())
    for path in paths:
        status = path.stat()
        identity = (
            status.st_dev,
            status.st_ino,
            status.st_size,
            status.st_mtime_ns,
            status.st_ctime_ns,
        )
        digest.update(f"{path.name} {identity}\n".encode())
    return str(digest.hexdigest())


def _open(path: Path) -> int | None:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError:
        return None


def _forget_old(cache: Path) -> None:
    """Keep the stamps asked for last, and none that nobody asked for in 30 days: their files are gone."""
    with contextlib.suppress(OSError):
        stamps = sorted((path.stat().st_mtime, path) for path in cache.glob(f"*{_SUFFIX}"))
        for place, (moment, path) in enumerate(reversed(stamps)):
            if place >= _MAX_STAMPS or time.time() - moment > _KEPT_SECONDS:
                path.unlink(missing_ok=True)

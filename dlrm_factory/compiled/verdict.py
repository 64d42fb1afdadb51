"""One verdict for all workers of a model on this host: they score with the compiled code, or all of them eagerly.

Compiled and eager scores differ in their last digits, so workers that decided each for itself would give a client one
score now and another one then. The first worker decides and writes the verdict down; every other one, and every one
that is started again, follows it.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import msgspec
import xxhash
from filelock import FileLock, Timeout

from dlrm_factory.weights.seal import read_seal

__all__ = ["Verdict", "one_at_a_time", "read_verdict", "verdict_path", "write_verdict"]

logger = logging.getLogger(__name__)


class Verdict(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Engine that scores, and for ``eager`` the reason, in the words of a log line."""

    engine: Literal["compiled", "eager"]
    reason: str = ""


def verdict_path(library: Path, folder: Path) -> Path:
    """Return the file that holds the verdict on ``library`` with the sealed weights in ``folder``, or would.

    The library's name stands for dense weights, shapes, versions, CPU and threads; the seal adds the tables and the
    golden requests, which the code was tried out with. WeightsError if there is no seal.
    """
    files = sorted(read_seal(folder).files.items())
    digest = xxhash.xxh3_128(library.name.encode())
    digest.update(msgspec.json.encode(files))
    return library.with_name(f"verdict-{digest.hexdigest()}.json")


def read_verdict(path: Path) -> Verdict | None:
    """The verdict in ``path``; None if there is none that can be read."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Verdict)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None


def write_verdict(path: Path, verdict: Verdict) -> None:
    """Write ``verdict`` whole or not at all. OSError if it cannot be written."""
    partial = path.with_suffix(f".{os.getpid()}")
    try:
        partial.write_bytes(msgspec.json.encode(verdict) + b"\n")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """Hold the lock file beside ``path``: one process of the host is in the block, and the others wait.

    OSError if it cannot be locked.
    """
    # Only locks that end with their process: a soft one, left behind by a killed worker of another container, would
    # make this one wait for ever.
    lock = FileLock(path.with_name(f"{path.name}.lock"), fallback_to_soft=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logger.info("Waiting for another process, which compiles the dense parts (pid %d)", os.getpid())
        lock.acquire(timeout=-1)
    try:
        yield
    finally:
        lock.release()

"""A process that holds a lock until it is killed."""

from __future__ import annotations

import multiprocessing
import multiprocessing.synchronize
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from multiprocessing.process import BaseProcess

__all__ = ["lock_holder"]


def _hold(
    lock: Callable[[], AbstractContextManager[object]], held: multiprocessing.synchronize.Event
) -> None:
    with lock():
        held.set()
        time.sleep(120)


@contextmanager
def lock_holder(lock: Callable[[], AbstractContextManager[object]]) -> Iterator[BaseProcess]:
    """Yield another process once it is in ``lock()``'s block. Killed at the end of the block, if not before."""
    context = multiprocessing.get_context("fork")
    held = context.Event()
    process = context.Process(target=_hold, args=(lock, held))
    process.start()
    try:
        assert held.wait(60), "the other process got no lock"
        yield process
    finally:
        process.kill()
        process.join(60)

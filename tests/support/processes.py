"""Several processes that find one another as ranks 0, 1, … with nobody who looks after them."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkServerProcess

import pytest

from dlrm_factory.tools.server.settings import free_ports

# Imported once, and each process forked from there: importing torch takes longer than these tests.
_PRELOADED = ["support.ranked"]


def _run(
    rank: int,
    size: int,
    port: int,
    environment: dict[str, str],
    function: Callable[..., None],
    arguments: tuple,
) -> None:
    import torch
    import torch.distributed as dist

    os.environ.update(environment)  # that of the server of forks may be an earlier test's
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(size),
        LOCAL_WORLD_SIZE=str(size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        GLOO_SOCKET_IFNAME="lo",
    )
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
    try:
        function(*arguments)
    except BaseException:
        # As servers do: Python's way out may wait for ranks that are gone.
        traceback.print_exc()
        os._exit(1)
    if dist.is_initialized():
        dist.destroy_process_group()


@contextlib.contextmanager
def ranks(function: Callable[..., None], *arguments: object, size: int) -> Iterator[list[ForkServerProcess]]:
    """Processes that call ``function(*arguments)``. None outlives the block."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    (port,) = free_ports(1)
    started = [
        context.Process(target=_run, args=(rank, size, port, dict(os.environ), function, arguments))
        for rank in range(size)
    ]
    with pytest.MonkeyPatch.context() as patch:
        # Python 3.11's server of forks has no other way to find what it shall import.
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        for process in started:
            process.start()
    try:
        yield started
    finally:
        for process in started:
            process.kill()
            process.join()


def end_of(processes: list[ForkServerProcess], *, within_s: float) -> list[int | None]:
    """Their exit codes; None for one that has not ended in time."""
    for process in processes:
        process.join(within_s)
    return [process.exitcode for process in processes]

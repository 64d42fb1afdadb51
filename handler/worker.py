"""Settings of a worker process for itself, before it loads a model and after: memory, reads, log lines, threads.

TorchServe's worker prints two lines for every batch, and the frontend reads, parses and files each, so most are left
out; DLRM_LOG_LEVEL=info or debug, which `dlrm serve --log-level` sets, leaves them all.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import sys
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch

from dlrm_factory.config.options import ServingOptions
from handler.wire import install_reads, install_whole_messages

__all__ = [
    "KEPT_BYTES",
    "MAPPED_ABOVE_BYTES",
    "PREDICTION_TIME",
    "TORCHREC_CALLS",
    "freeze_loaded",
    "keep_memory",
    "lines_wanted",
    "prepare_worker",
    "quiet_reads",
    "share_cores",
    "thin_out_times",
]  # fmt: skip

logger = logging.getLogger(__name__)

# TorchRec logs every planner call here with all its arguments, and TorchServe's workers print what is logged.
TORCHREC_CALLS = "MethodLogger-NullHandler"
PREDICTION_TIME = "PredictionTime"
_PROTOCOL, _SERVICE, _CONTEXT = "ts.protocol.otf_message_handler", "ts.service", "ts.context"

# From glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3

MAPPED_ABOVE_BYTES = 32 * 1024 * 1024  # the most that glibc takes
KEPT_BYTES = 16 * 1024 * 1024


def prepare_worker(version: str, metrics: Any) -> None:
    """Memory, reads and lines of this process. Only a worker of TorchServe has loaded its protocol.

    Args:
        version: TorchServe's.
        metrics: TorchServe's metrics of the model; None if there are none.
    """
    logging.getLogger(TORCHREC_CALLS).setLevel(logging.WARNING)
    keep_memory()
    protocol = sys.modules.get(_PROTOCOL)
    if protocol is None or not install_reads(protocol, version):
        return
    if _SERVICE in sys.modules and _CONTEXT in sys.modules:
        install_whole_messages(protocol, sys.modules[_SERVICE], sys.modules[_CONTEXT], version)
    if not lines_wanted():
        quiet_reads(protocol)
        if metrics is not None:
            thin_out_times(metrics)


def share_cores(serving: ServingOptions, *, ranks: int = 1) -> None:
    """Give torch its threads. Warn when all workers together have more of them than there are cores.

    ``ranks``: processes of a worker.
    """
    torch.set_num_threads(serving.threads)
    cores = len(os.sched_getaffinity(0))
    if serving.min_workers * ranks * serving.threads > cores:
        logger.warning(
            "%d workers of %d threads share %d cores; a thread that waits for a busy core delays its whole batch. "
            "Lower serving.threads or serving.min_workers",
            serving.min_workers,
            ranks * serving.threads,
            cores,
        )


def freeze_loaded() -> None:
    """Take all that is loaded out of the garbage collector's sight, and let it collect from here on.

    A full collection walks all of TorchRec, for 160 ms in the middle of somebody's request.
    """
    gc.collect()
    gc.freeze()
    gc.enable()


def keep_memory() -> bool:
    """Freed memory up to `KEPT_BYTES` stays with the process; False where the C library has no such setting.

    By default glibc gives the megabytes of each large batch back to the system, and the next batch pays for them
    again, a page fault for every 4 KiB. Settings of the environment (MALLOC_TRIM_THRESHOLD_ …) are overruled.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        logger.info("The C library has no mallopt; memory of large batches is taken anew for each")
        return False
    # Setting one of them also ends glibc's own guessing of both.
    return bool(mallopt(_M_MMAP_THRESHOLD, MAPPED_ABOVE_BYTES) and mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES))


def lines_wanted() -> bool:
    """True if somebody asked for TorchServe's own lines."""
    return os.environ.get("DLRM_LOG_LEVEL", "warn").lower() in ("info", "debug", "trace", "all")


def quiet_reads(module: ModuleType) -> None:
    """Drop "Backend received inference at: …"; warnings of ``module``, TorchServe's protocol, still come."""
    lines = logging.getLogger(_PROTOCOL)
    lines.setLevel(logging.WARNING)
    # The module calls the root logger through `logging`; a logger answers the same calls.
    vars(module)["logging"] = lines


def thin_out_times(
    metrics: Any, *, every_s: float = 1.0, clock: Callable[[], float] = time.monotonic
) -> None:
    """Let ``metrics``, TorchServe's metrics of a model, report PredictionTime at most once in ``every_s`` seconds.

    It is a gauge: whoever fetches it sees the last value only. Other metrics pass as they are.
    """
    add_time: Callable[..., None] = metrics.add_time
    due = clock()

    def add_time_sparingly(name: str, *args: Any, **kwargs: Any) -> None:
        nonlocal due
        if name == PREDICTION_TIME:
            now = clock()
            if now < due:
                return
            due = now + every_s
        add_time(name, *args, **kwargs)

    metrics.add_time = add_time_sparingly

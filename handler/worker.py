"""What a worker process sets for itself, before it loads a model and after."""

from __future__ import annotations

import gc
import logging
import os
import sys
from typing import Any

import torch

from dlrm_factory.config.declaration import ServingOptions
from handler.allocator import keep_memory
from handler.wire import install_reads, install_whole_messages
from handler.worker_lines import are_wanted, quiet_reads, thin_out_times

__all__ = ["TORCHREC_CALLS", "prepare_worker", "settle", "share_cores"]

logger = logging.getLogger(__name__)

# TorchRec logs every planner call here with all its arguments, and TorchServe's workers print what is logged.
TORCHREC_CALLS = "MethodLogger-NullHandler"
_PROTOCOL, _SERVICE, _CONTEXT = "ts.protocol.otf_message_handler", "ts.service", "ts.context"


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
    if not are_wanted():
        quiet_reads(protocol)
        if metrics is not None:
            thin_out_times(metrics)


def share_cores(serving: ServingOptions) -> None:
    """Gives torch its threads. Warns when all workers together have more of them than there are cores."""
    torch.set_num_threads(serving.threads)
    cores = len(os.sched_getaffinity(0))
    wanted = serving.min_workers * serving.threads
    if wanted > cores:
        logger.warning(
            "%d workers of %d threads share %d cores; a thread that waits for a busy core delays its whole batch. "
            "Lower serving.threads or serving.min_workers",
            serving.min_workers,
            serving.threads,
            cores,
        )


def settle() -> None:
    """Takes all that is loaded out of the garbage collector's sight.

    A full collection walks all of TorchRec, for 160 ms in the middle of somebody's request.
    """
    gc.collect()
    gc.freeze()

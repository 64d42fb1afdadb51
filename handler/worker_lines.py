"""Fewer lines from TorchServe's worker: it prints two for every batch, and the frontend reads, parses and files each.

DLRM_LOG_LEVEL=info or debug, which `dlrm serve --log-level` sets, leaves them all.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

__all__ = ["PREDICTION_TIME", "are_wanted", "quiet_reads", "thin_out_times"]

PREDICTION_TIME = "PredictionTime"
_READS_LOGGER = "ts.protocol.otf_message_handler"


def are_wanted() -> bool:
    """Whether somebody asked for TorchServe's own lines."""
    return os.environ.get("DLRM_LOG_LEVEL", "warn").lower() in ("info", "debug", "trace", "all")


def quiet_reads(module: ModuleType) -> None:
    """Drops "Backend received inference at: …"; warnings of ``module``, TorchServe's protocol, still come."""
    lines = logging.getLogger(_READS_LOGGER)
    lines.setLevel(logging.WARNING)
    # The module calls the root logger through `logging`; a logger answers the same calls.
    vars(module)["logging"] = lines


def thin_out_times(
    metrics: Any, *, every_s: float = 1.0, clock: Callable[[], float] = time.monotonic
) -> None:
    """Lets ``metrics``, TorchServe's metrics of a model, report PredictionTime at most once in ``every_s`` seconds.

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

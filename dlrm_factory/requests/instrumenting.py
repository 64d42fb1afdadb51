"""A service whose work is counted in files: made once a worker, after its golden requests."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from dlrm_factory.config import DLRMDeclaration
from dlrm_factory.monitoring.drift import DriftCounter, drift_parts
from dlrm_factory.monitoring.families import (
    ARCHIVE_CREATED,
    DRIFT_REFERENCE,
    FAMILIES,
    GOLDEN_DIFFERENCE,
    GOLDENS,
    LOAD_SECONDS,
    STARTED,
    series_of,
)
from dlrm_factory.monitoring.metrics_file import SUFFIX, MetricsFile
from dlrm_factory.monitoring.reference import Reference
from dlrm_factory.monitoring.score_log import SCORES_SUFFIX, ScoreLog
from dlrm_factory.requests.observing import ServiceObserver
from dlrm_factory.requests.service import DLRMService

__all__ = ["BLOCKS", "BLOCK_SECONDS", "instrument"]

# An hour of drift, minute by minute.
BLOCKS, BLOCK_SECONDS = 60, 60.0


def instrument(
    service: DLRMService,
    declaration: DLRMDeclaration,
    *,
    files: Path,
    engine: Callable[[], str],
    reference: Reference | None = None,
    model_dir: str = "",
    goldens: int = 0,
    golden_difference: float = 0.0,
    load_seconds: float = 0.0,
    archive_created: float = 0.0,
    block_seconds: float = BLOCK_SECONDS,
    clock: Callable[[], float] = time.time,
) -> ServiceObserver:
    """Let ``service`` count what it answers from now on in files of this process in the folder ``files``.

    Args:
        engine: tells the engine that scores now.
        reference: distribution at training, that samples are compared with.
        model_dir: folder of the archive.
        goldens, golden_difference: requests that were reproduced, and the largest difference of a probability.
        load_seconds: that loading took.
        archive_created: time of the archive, in seconds since the epoch; 0 if that is not known.
        block_seconds: time in one block of the drift's window.
        clock: seconds since the epoch.

    OSError if the files cannot be made.
    """
    stem = str(os.getpid())
    file = MetricsFile(
        files / f"{stem}{SUFFIX}",
        model=service.model_name,
        version=service.model_version or "",
        model_dir=model_dir,
        families={family: series_of(family, declaration) for family in FAMILIES},
        drift=() if reference is None else drift_parts(reference),
        blocks=BLOCKS,
        block_seconds=block_seconds,
    )
    facts = {
        GOLDENS: goldens,
        GOLDEN_DIFFERENCE: golden_difference,
        LOAD_SECONDS: load_seconds,
        ARCHIVE_CREATED: archive_created,
        DRIFT_REFERENCE: 0 if reference is None else reference.samples,
        STARTED: clock(),
    }
    for family, value in facts.items():
        file.numbers(family)[:] = value
    observer = ServiceObserver(
        file,
        declaration,
        reads=service.read_counts,
        engine=engine,
        drift=None
        if reference is None
        else DriftCounter(reference, declaration, file.drift_blocks(), block_seconds),
        scores=ScoreLog(files / f"{stem}{SCORES_SUFFIX}"),
        clock=clock,
    )
    service.observe(observer)
    return observer

"""Metrics of a worker, in files beside those of the model's other workers, which an exporter reads.

TorchServe's own way of metrics is a log line for each value, which the front end reads and parses: it costs more than a
request, and has no histograms with buckets of one's own.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from dlrm_factory.config import DLRMDeclaration
from dlrm_factory.host.worker_file import worker_folder
from dlrm_factory.monitoring.metrics_file import remove_orphans
from dlrm_factory.monitoring.reference import read_reference
from dlrm_factory.requests.instrumenting import instrument
from dlrm_factory.requests.service import DLRMService

__all__ = ["count_metrics", "created_at"]

logger = logging.getLogger(__name__)


def count_metrics(
    service: DLRMService,
    declaration: DLRMDeclaration,
    folder: Path,
    *,
    engine: Callable[[], str],
    manifest: Mapping[str, Any] | None,
    goldens: int,
    golden_difference: float,
    load_seconds: float,
) -> None:
    """Count what ``service`` answers from now on. Where the files cannot be made, nothing is counted, with a warning.

    Args:
        folder: of the unpacked archive.
        engine: tells the engine that scores now.
        manifest: of the archive.
        goldens, golden_difference: golden requests reproduced, and the largest difference.
        load_seconds: that loading took.

    WeightsError if the archive's reference is damaged.
    """
    reference = read_reference(folder, declaration)
    try:
        files = worker_folder(str(folder))
        remove_orphans(files.parent)
        observer = instrument(
            service,
            declaration,
            files=files,
            engine=engine,
            reference=reference,
            model_dir=str(folder),
            goldens=goldens,
            golden_difference=golden_difference,
            load_seconds=load_seconds,
            archive_created=created_at(manifest),
        )
    except OSError as error:
        logger.warning("Metrics of this worker are not counted: %s", error)
        return
    observer.start()


def created_at(manifest: Mapping[str, Any] | None) -> float:
    """Time of the archive by its manifest, in seconds since the epoch; 0 if it tells none.

    torch-model-archiver writes the time of its machine without the zone.
    """
    try:
        return datetime.strptime(str((manifest or {})["createdOn"]), "%d/%m/%Y %H:%M:%S").timestamp()
    except (KeyError, ValueError, OverflowError):
        return 0.0

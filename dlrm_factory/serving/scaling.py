"""Changes the number of workers of a running model, and waits for it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from dlrm_factory.errors import ServingError
from dlrm_factory.serving.failures import LogMarks
from dlrm_factory.serving.management import ManagementClient
from dlrm_factory.serving.readiness import Progress, wait_for_workers

__all__ = ["Scaled", "scale_model"]


@dataclass(frozen=True, kw_only=True)
class Scaled:
    """The workers before and after, and the seconds it took."""

    model: str
    before: int
    after: int
    seconds: float


def scale_model(
    client: ManagementClient,
    model: str,
    workers: int,
    *,
    marks: LogMarks | None = None,
    timeout: float = 600.0,
    tell: Callable[[Progress], None] = lambda _: None,
) -> Scaled:
    """Returns once ``model`` has exactly ``workers`` workers, all ready.

    Raises ServingError when a worker dies while it loads or ``timeout`` seconds pass; TorchServe then
    goes on trying.
    """
    if workers < 0:
        raise ServingError(f"{workers} workers: give 0 or more")
    start = time.monotonic()
    before = len(client.workers(model))
    client.scale(model, workers)
    try:
        wait_for_workers(client, model, workers, marks=marks, deadline=start + timeout, tell=tell)
    except ServingError as error:
        if not client.answers():
            raise
        advice = f"TorchServe goes on trying; `dlrm scale {before} --model {model}` goes back to {before}"
        raise ServingError(f"{error}\n{advice}") from error
    return Scaled(model=model, before=before, after=workers, seconds=time.monotonic() - start)

"""Changes the number of workers of a running model, and waits for it."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

from dlrm_factory.errors import ServingError
from dlrm_factory.tools.server.draining import Drain
from dlrm_factory.tools.server.failures import LogMarks
from dlrm_factory.tools.server.management import ManagementClient
from dlrm_factory.tools.server.readiness import NotAnswering, Progress, wait_for_workers

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
    drain: Drain | None = None,
) -> Scaled:
    """Return once ``model`` has exactly ``workers`` workers, all ready.

    Workers that go are drained first, where ``drain`` is given: the requests they hold go to those that stay.

    Args:
        client: of the server's management API.
        model: name of the model; its default version is scaled.
        workers: how many to have.
        marks: the server's logs; None where they are elsewhere.
        timeout: seconds until all must be ready.
        tell: called with the progress.
        drain: for a server on this machine.

    Raises ServingError when a worker dies while it loads or ``timeout`` seconds pass; TorchServe then
    goes on trying.
    """
    if workers < 0:
        raise ServingError(f"{workers} workers: give 0 or more")
    start = time.monotonic()
    present = client.workers(model)
    before = len(present)
    # TorchServe ends the last ones of its list.
    going = [worker.pid for worker in present[workers:] if worker.ready]
    try:
        with drain.workers(going) if drain else nullcontext():
            client.scale(model, workers)
            wait_for_workers(client, model, workers, marks=marks, deadline=start + timeout, tell=tell)
    except ServingError as error:
        if isinstance(error, NotAnswering) or not client.answers():
            raise
        advice = f"TorchServe goes on trying; `dlrm scale {before} --model {model}` goes back to {before}"
        raise ServingError(f"{error}\n{advice}") from error
    return Scaled(model=model, before=before, after=workers, seconds=time.monotonic() - start)

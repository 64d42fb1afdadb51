"""Drains workers before TorchServe ends them, so that no request of theirs is answered twice or lost."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dlrm_factory.host.worker_file import WorkerFile, find_worker_file

__all__ = ["Drain", "Probe"]

# A worker that is at work on one batch for longer is ended all the same: its requests get a retryable error.
MAX_DRAIN_S = 5.0
# Where nobody can send probes, workers without requests are not waited for.
MAX_DRAIN_UNPROBED_S = 0.25
_POLL_S = 0.005
_PROBE_AFTER_S = 0.03

# Sends the model a request, and returns soon, answered or not.
Probe = Callable[[], None]


@dataclass(frozen=True, kw_only=True)
class Drain:
    """Lets workers of a server on this machine hold their next batch unanswered.

    TorchServe queues the requests of a worker that it ends again, at the front, for the other workers.

    Args:
        temporary: the server's temporary folder; this process's own if None.
        probe: called for workers to which no request comes: one may come in the very moment in which they end,
            and be lost, so each is given one to hold.
    """

    temporary: Path | None = None
    probe: Probe | None = None

    @contextlib.contextmanager
    def workers(self, pids: Sequence[int]) -> Iterator[int]:
        """Let the workers ``pids`` hold until the block ends.

        Yields:
            How many of them hold. The others cannot be drained, or did not come to it in time.
        """
        with contextlib.ExitStack() as stack:
            files = [file for pid in pids if (file := find_worker_file(pid, self.temporary)) is not None]
            for file in files:
                stack.callback(_release, file)
                file.drain = True
            self._wait(files)
            yield sum(file.holding for file in files)

    def _wait(self, files: Sequence[WorkerFile]) -> None:
        start = time.monotonic()
        bound = MAX_DRAIN_UNPROBED_S if self.probe is None else MAX_DRAIN_S
        while not all(file.holding for file in files) and (spent := time.monotonic() - start) < bound:
            if self.probe is not None and spent > _PROBE_AFTER_S:
                self.probe()
            else:
                time.sleep(_POLL_S)


def _release(file: WorkerFile) -> None:
    file.drain = False
    file.close()

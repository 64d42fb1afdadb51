"""Keeps each request answered once while workers are scaled away, and answered while a server ends.

`dlrm_factory.host.worker_file` says why a request may come to a second worker, and where workers write what they
answer.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence

from dlrm_factory.host.worker_file import WorkerFolder, worker_folder
from dlrm_factory.requests.answers import Answer, answer_going_away
from dlrm_factory.requests.request import Request
from handler.calls import Service

__all__ = ["Draining"]

logger = logging.getLogger(__name__)

# TorchServe ends a worker within milliseconds of being asked to; whoever asked for the hold may have died before.
MAX_HOLD_S = 10.0
_POLL_S = 0.002
_NONE: frozenset[int] = frozenset()


class Draining:
    """Checks of a worker before it scores a batch, and before it answers one.

    ``file``: the worker's own; None where the worker cannot tell the others anything.
    """

    def __init__(self, folder: WorkerFolder | None) -> None:
        self._folder = folder
        self.file = None if folder is None else folder.own

    @classmethod
    def for_model(cls, model_dir: str) -> Draining:
        """Join the workers of the model version that TorchServe unpacked into ``model_dir``."""
        try:
            return cls(WorkerFolder(worker_folder(model_dir), os.getpid()))
        except OSError as error:
            logger.warning("Requests in flight may be answered twice when workers are scaled away: %s", error)
            return cls(None)

    def begin_batch(self, ids: Mapping[int, str] | None, *, by_http: bool) -> None:
        """Write down a batch that has come. ``ids``: place in the batch → TorchServe's id of the request."""
        if self._folder is not None and ids:
            self._folder.hold(ids.values(), by_http=by_http)

    def hold(
        self, clock: Callable[[], float] = time.monotonic, pause: Callable[[float], None] = time.sleep
    ) -> None:
        """Return at once, or, once the worker is being drained, when that is over.

        TorchServe ends a worker that holds a batch, and queues the batch again for the others.
        """
        if self._folder is None:
            return
        own = self._folder.own
        own.busy = True
        if not own.drain:
            return
        end = clock() + MAX_HOLD_S
        own.holding = True
        while own.drain and clock() < end:
            pause(_POLL_S)
        own.holding = False
        if own.drain:
            own.drain = False
            logger.warning("This worker was drained for %.0f s and not ended; it serves on", MAX_HOLD_S)

    def service(self, service: Service) -> Service:
        """Return who answers the batch: ``service``, or one that turns all requests away."""
        return _TurningAway(service) if self._folder is not None and self._folder.own.turns_away else service

    def begin_answers(self, ids: Mapping[int, str] | None) -> frozenset[int]:
        """Say that the batch is about to be answered; return the places that another worker may have answered.

        A client must get a retryable error for these, with which TorchServe closes the connection.

        ``ids``: those of the batch that get an answer.
        """
        if self._folder is None:
            return _NONE
        answered = self._folder.begin_answers()
        self._folder.own.busy = False
        if not answered or not ids:
            return _NONE
        logger.info("%d requests came from a worker that may have answered them", len(answered))
        return frozenset(place for place, name in ids.items() if name.encode() in answered)


class _TurningAway:
    """Service that answers every request with an error that may be tried again."""

    def __init__(self, service: Service) -> None:
        self.model_name = service.model_name
        self.model_version = service.model_version
        self.max_body_bytes = service.max_body_bytes

    def handle(self, requests: Sequence[Request]) -> list[Answer]:
        return [answer_going_away() for _ in requests]

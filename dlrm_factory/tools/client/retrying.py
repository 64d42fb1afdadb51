"""Retries: requests to send again, and after how long."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

import httpx

from dlrm_factory.tools.client.errors import ClientError

__all__ = ["Attempts", "Outcome", "Retry"]

Outcome = httpx.Response | httpx.RequestError

_MAX_LOST_WORKERS = 3
# For a worker that ended with requests in its hands: words of TorchServe (500, or 507) and of a worker's guard (503).
_LOST_WORKER = frozenset(
    {
        "Worker died.",
        "Worker scaled down.",
        "the worker that had this request is gone; send it again",
        "a process of the group that holds the model is gone; send it again",
    }
)


@dataclass(frozen=True, kw_only=True)
class Retry:
    """Exponential back-off: each pause is up to twice as long as the one before; by default some 8 s in all.

    Args:
        attempts: how often a request is sent at most; 1 for never again.
        first_delay: seconds before the second attempt, at most.
        longest_delay: seconds of any pause, at most.
    """

    attempts: int = 10
    first_delay: float = 0.05
    longest_delay: float = 2.0

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise ClientError(f"attempts is {self.attempts}; send at least 1")
        if not 0 <= self.first_delay <= self.longest_delay:
            raise ClientError(
                f"first_delay is {self.first_delay} and longest_delay {self.longest_delay}; "
                "give 0 <= first_delay <= longest_delay"
            )

    def delays(self) -> Iterator[float]:
        """Seconds to pause before each further attempt."""
        delay = self.first_delay
        for _ in range(self.attempts - 1):
            # Jitter: clients that were turned away together must not come back together.
            yield delay * random.uniform(0.5, 1.0)
            delay = min(2 * delay, self.longest_delay)


class Attempts:
    """The attempts at one call. Every call of a client may be repeated safely."""

    def __init__(self, retry: Retry) -> None:
        self._delays = retry.delays()
        self._lost_workers = 0

    def pause_after(self, outcome: Outcome) -> float | None:
        """Return the seconds to wait before the next attempt; None where ``outcome`` is final."""
        if not self._is_worth_retrying(outcome):
            return None
        return next(self._delays, None)

    def _is_worth_retrying(self, outcome: Outcome) -> bool:
        if not isinstance(outcome, httpx.Response):
            # Not after a time-out: TorchServe goes on with a request whose client has gone, so it would have two.
            return isinstance(outcome, (httpx.NetworkError, httpx.RemoteProtocolError))
        if outcome.status_code in (500, 503, 507) and _lost_worker(outcome):
            # A request that is itself the end of workers must not end them all.
            self._lost_workers += 1
            return self._lost_workers <= _MAX_LOST_WORKERS
        return outcome.status_code == 503


def _lost_worker(response: httpx.Response) -> bool:
    try:
        body = response.json()
    except (ValueError, RecursionError):
        return False
    return isinstance(body, dict) and body.get("message") in _LOST_WORKER

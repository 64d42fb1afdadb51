"""When a request is sent again, and after how long."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

import httpx

from dlrm_factory.client.errors import ClientError

__all__ = ["Outcome", "Retry", "is_worth_retrying"]

Outcome = httpx.Response | httpx.RequestError


@dataclass(frozen=True, kw_only=True)
class Retry:
    """Exponential back-off: each pause is up to twice as long as the one before.

    Args:
        attempts: how often a request is sent at most; 1 for never again.
        first_delay: seconds before the second attempt, at most.
        longest_delay: seconds of any pause, at most.
    """

    attempts: int = 6
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


def is_worth_retrying(outcome: Outcome) -> bool:
    """Whether the same request may fare better in a moment. Every call of a client may be repeated safely."""
    if isinstance(outcome, httpx.Response):
        return outcome.status_code == 503
    # Not after a time-out: TorchServe goes on with a request whose client has gone, so it would have two.
    return isinstance(outcome, (httpx.NetworkError, httpx.RemoteProtocolError))

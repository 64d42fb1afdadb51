"""An event loop whose timers are good to some ten microseconds."""

from __future__ import annotations

import asyncio
import select
import selectors

__all__ = ["precise_event_loop"]

# epoll waits whole milliseconds, rounded up: a request due in 0.2 ms would be sent 0.8 ms late.
_COARSE_S = 0.002


class _PreciseSelector(selectors.EpollSelector):
    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None or timeout <= 0:
            return super().select(timeout)
        if timeout > _COARSE_S:
            return super().select(timeout - _COARSE_S)
        # select(2) takes microseconds, and an epoll instance is a file that becomes readable.
        select.select([self.fileno()], [], [], timeout)
        return super().select(0)


def precise_event_loop() -> asyncio.AbstractEventLoop:
    """A new event loop on epoll."""
    return asyncio.SelectorEventLoop(_PreciseSelector())

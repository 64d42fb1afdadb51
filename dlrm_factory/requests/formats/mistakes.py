"""Several mistakes of one request → the one error that answers it."""

from __future__ import annotations

from collections.abc import Iterable

from dlrm_factory.errors import RequestError

__all__ = ["MOST", "Mistakes"]

MOST = 10


class Mistakes:
    """Mistakes in the order found, as many as an answer lists. Looking for more would only cost the neighbours."""

    def __init__(self) -> None:
        self._found: list[RequestError] = []
        self._more = False

    @property
    def full(self) -> bool:
        """Whether there are more than an answer lists, so that nobody need look on."""
        return self._more

    def add(self, mistake: RequestError) -> None:
        """Take ``mistake``; the one after the tenth only counts as more."""
        if len(self._found) < MOST:
            self._found.append(mistake)
        else:
            self._more = True

    def add_all(self, mistakes: Iterable[RequestError]) -> None:
        """Take ``mistakes`` until there are enough."""
        for mistake in mistakes:
            if self.full:
                break
            self.add(mistake)

    def check(self) -> None:
        """Raise the first mistake, with the others in it, if there is one."""
        if self._found:
            first, *others = self._found
            raise type(first)(first.message, first.path, others=others, more=self._more)

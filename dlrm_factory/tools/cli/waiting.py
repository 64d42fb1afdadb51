"""Progress of a wait for workers, and for the compiler, as a person sees it."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

from rich.console import Console
from rich.markup import escape
from rich.status import Status

from dlrm_factory.tools.server import Progress

__all__ = ["WorkerWait", "telling_of_compiling"]

_COMPILED = "dlrm_factory.compiled"


class WorkerWait:
    """Shows the workers that are ready beside a spinner, and whatever takes long on a line that stays."""

    def __init__(self, console: Console, status: Status) -> None:
        self._console, self._status = console, status
        self._told: set[tuple[str, str]] = set()

    def __call__(self, progress: Progress) -> None:
        there = f" ({progress.present} there)" if progress.present > progress.wanted else ""
        text = f"{progress.model}: {progress.ready} of {progress.wanted} workers ready{there}"
        self._status.update(escape(text))
        if progress.doing and (progress.model, progress.doing) not in self._told:
            self._told.add((progress.model, progress.doing))
            self._console.print(escape(f"{progress.model}: {progress.doing}"), soft_wrap=True)


@contextlib.contextmanager
def telling_of_compiling(console: Console) -> Iterator[None]:
    """Print what the compiled package says of its long steps while the block runs."""
    said = logging.getLogger(_COMPILED)
    handler, level, passed_on = _Lines(console), said.level, said.propagate
    said.addHandler(handler)
    said.setLevel(logging.INFO)
    said.propagate = False
    try:
        yield
    finally:
        said.removeHandler(handler)
        said.setLevel(level)
        said.propagate = passed_on


class _Lines(logging.Handler):
    """Prints each message as a line."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        self._console.print(escape(record.getMessage()), soft_wrap=True)

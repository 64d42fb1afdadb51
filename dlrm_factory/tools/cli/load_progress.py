"""What is seen of a load while it runs."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from dlrm_factory.tools.bench.http.driving import Watcher
from dlrm_factory.tools.bench.http.server_use import ServerMeter, ServerUse

__all__ = ["LoadProgress"]


class LoadProgress(Watcher):
    """Draws seconds, answers and failures on ``console``, and measures the server in the window."""

    def __init__(self, console: Console, seconds: float, what: str, meter: ServerMeter | None) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
        # Drawn twice a second: the generator may share its core with us.
        self._progress = Progress(
            *columns, console=console, transient=True, disable=not console.is_terminal, refresh_per_second=2
        )
        self._meter = meter
        self._what = what or "warming up"
        self._task = self._progress.add_task(escape(self._what), total=seconds)

    @property
    def uses(self) -> list[ServerUse]:
        """Of the server's processes in the window; empty if it is not on this machine."""
        return self._meter.uses if self._meter else []

    def __enter__(self) -> LoadProgress:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def progressed(self, elapsed_s: float, answered: int, failed: int) -> None:
        text = f"{self._what}: {answered:,} answered" + (f", {failed:,} failed" if failed else "")
        self._progress.update(self._task, completed=elapsed_s, description=escape(text))

    def window_began(self) -> None:
        if self._what == "warming up":
            self._what = "measuring"
        if self._meter:
            self._meter.begin()

    def window_ended(self) -> None:
        if self._meter:
            self._meter.end()

"""The progress bars of ``dlrm evaluate``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

if TYPE_CHECKING:
    from dlrm_factory.tools.training import Progress as Stage

__all__ = ["evaluation_progress"]


@contextmanager
def evaluation_progress() -> Iterator[tuple[Callable[[Stage], None], Callable[[int, int], None]]]:
    """Yields observers of samples and of the baseline's trees. They draw on stderr, if it is a terminal."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description:<16}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        tasks: dict[str, TaskID] = {}

        def show(name: str, done: int, total: int | None) -> None:
            if name not in tasks:
                tasks[name] = progress.add_task(name, total=total)
            progress.update(tasks[name], completed=done, total=total)

        yield (
            lambda stage: show(stage.stage, stage.done, stage.total),
            lambda done, most: show(f"trees, {most} at most", done, most),
        )

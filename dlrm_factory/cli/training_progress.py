"""The progress bar of ``dlrm train``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

if TYPE_CHECKING:
    from dlrm_factory.training import Progress as Stage

__all__ = ["training_progress"]


class _Speed(ProgressColumn):
    """Samples a second, over the latest half minute."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.0f} samples/s" if speed else "")


@contextmanager
def training_progress() -> Iterator[Callable[[Stage], None]]:
    """Yields an observer that draws one bar a stage on stderr; draws nothing if stderr is no terminal."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description:<10}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        _Speed(),
        TextColumn("{task.fields[loss]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        tasks: dict[str, TaskID] = {}

        def observe(stage: Stage) -> None:
            if stage.stage not in tasks:
                tasks[stage.stage] = progress.add_task(stage.stage, total=stage.total, loss="")
            loss = "" if stage.loss is None else f"loss {stage.loss:.4f}"
            progress.update(tasks[stage.stage], completed=stage.done, total=stage.total, loss=loss)

        yield observe

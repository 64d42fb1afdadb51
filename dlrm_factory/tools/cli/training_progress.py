"""The progress bar of ``dlrm train``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

if TYPE_CHECKING:
    from dlrm_factory.tools.training import Progress as Stage

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
        BarColumn(bar_width=12),  # so that all figures fit into 80 columns
        TextColumn("{task.percentage:>3.0f}%"),
        _Speed(),
        TextColumn("{task.fields[figures]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        tasks: dict[str, TaskID] = {}
        auc = ""

        def observe(stage: Stage) -> None:
            nonlocal auc
            if stage.stage not in tasks:
                tasks[stage.stage] = progress.add_task(stage.stage, total=stage.total, figures="")
            if stage.evaluation is not None and stage.evaluation.held_out_auc is not None:
                auc = f"AUC {stage.evaluation.held_out_auc:.4f}"
            loss = "" if stage.loss is None else f"loss {stage.loss:.4f}"
            figures = f"{loss} {auc}" if stage.stage == "training" else ""
            progress.update(tasks[stage.stage], completed=stage.done, total=stage.total, figures=figures)
            if stage.evaluation is not None and "training" in tasks:
                task = progress.tasks[progress.task_ids.index(tasks["training"])]
                loss = str(task.fields["figures"]).partition(" AUC")[0].strip()
                progress.update(tasks["training"], figures=f"{loss} {auc}")

        yield observe

"""Progress of long work on stderr, as a person sees it; nothing is drawn if stderr is no terminal."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.status import Status
from rich.text import Text

from dlrm_factory.tools.bench.http.driving import Watcher
from dlrm_factory.tools.bench.http.server import ServerMeter, ServerUse
from dlrm_factory.tools.server import Progress as WorkerProgress

if TYPE_CHECKING:
    from dlrm_factory.tools.training import Progress as Stage
    from dlrm_factory.tools.tuning import TuningTrial

__all__ = [
    "LoadProgress",
    "WorkerWait",
    "byte_progress",
    "evaluation_progress",
    "row_progress",
    "show_compiling",
    "training_progress",
    "tuning_progress",
]

_COMPILED = "dlrm_factory.compiled"


@contextmanager
def byte_progress(description: str) -> Iterator[Callable[[int, int], None]]:
    """Yields ``update(bytes_done, bytes_total)``, which draws on stderr; nothing is left behind."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(description, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


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


@contextmanager
def tuning_progress() -> Iterator[Callable[[TuningTrial], None]]:
    """Yields what tells of each trial that is over, with a line on stderr, and the best AUC so far."""
    console = Console(stderr=True)
    best = 0.0

    def tell(trial: TuningTrial) -> None:
        nonlocal best
        if trial.state == "complete":
            best = max(best, trial.validation_auc or 0.0)
        auc = "" if trial.validation_auc is None else f", AUC {trial.validation_auc:.4f}"
        text = f"trial {trial.number}: {trial.state}{auc}, best so far {best:.4f}, {trial.seconds:.1f} s"
        console.print(text, soft_wrap=True, highlight=False)

    yield tell


@contextmanager
def row_progress() -> Iterator[Callable[[int, int | None], None]]:
    """Yields an observer of (rows done, rows in all); draws nothing if stderr is no terminal."""
    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("rows"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task("rows", total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


@contextmanager
def evaluation_progress() -> Iterator[tuple[Callable[[Stage], None], Callable[[int, int], None]]]:
    """Yields observers of samples and of the baseline's trees. Both draw on stderr, if that is a terminal."""
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
        """Use of CPU and memory by the server's processes in the window; empty if the server is elsewhere."""
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


class WorkerWait:
    """Shows the workers that are ready beside a spinner, and whatever takes long on a line that stays."""

    def __init__(self, console: Console, status: Status) -> None:
        self._console, self._status = console, status
        self._told: set[tuple[str, str]] = set()

    def __call__(self, progress: WorkerProgress) -> None:
        there = f" ({progress.present} there)" if progress.present > progress.wanted else ""
        text = f"{progress.model}: {progress.ready} of {progress.wanted} workers ready{there}"
        self._status.update(escape(text))
        if progress.doing and (progress.model, progress.doing) not in self._told:
            self._told.add((progress.model, progress.doing))
            self._console.print(escape(f"{progress.model}: {progress.doing}"), soft_wrap=True)


@contextlib.contextmanager
def show_compiling(console: Console) -> Iterator[None]:
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

"""Lines that a person sees during a wait for workers."""

from __future__ import annotations

import io
import logging
import os
import time

from rich.console import Console

from dlrm_factory.tools.cli.progress import WorkerWait, show_compiling
from dlrm_factory.tools.server import LogMarks, Progress
from dlrm_factory.tools.server.management import Worker
from dlrm_factory.tools.server.readiness import wait_for_workers
from dlrm_factory.tools.server.rundir import RunDir


def console() -> tuple[Console, io.StringIO]:
    text = io.StringIO()
    return Console(file=text, width=200), text


def test_what_takes_long_is_a_line_told_once_also_where_there_is_no_terminal() -> None:
    shown, text = console()
    with shown.status("starting") as status:
        tell = WorkerWait(shown, status)
        tell(Progress(model="dlrm", ready=0, present=2, wanted=2))
        for ready in (0, 0, 1):
            tell(Progress(model="dlrm", ready=ready, present=2, wanted=2, doing="compiling [30 s]"))
    assert text.getvalue().count("dlrm: compiling [30 s]") == 1


class Group:
    """Management client of a model whose worker has one pid, and then another of the same group, both alive."""

    def __init__(self) -> None:
        self._pids = [os.getppid(), os.getpid()]

    def workers(self, model: str, version: str | None = None) -> list[Worker]:
        pid = self._pids.pop(0) if len(self._pids) > 1 else self._pids[0]
        return [Worker(id="9000", pid=pid, ready=pid == os.getpid())]

    def ask_worker(self, model: str, timeout: float, version: str | None = None) -> bool:
        return True


def test_a_rank_whose_pid_gave_way_to_its_leaders_has_not_gone(run_dir: RunDir) -> None:
    wait_for_workers(
        Group(),
        "dlrm",
        1,
        marks=LogMarks.now(run_dir),
        deadline=time.monotonic() + 5,
        tell=lambda _: None,
    )


def test_commands_say_that_they_compile() -> None:
    shown, text = console()
    log = logging.getLogger("dlrm_factory.compiled.dense_library")
    with show_compiling(shown):
        log.info("Compiling the dense parts")
    log.info("not told")
    assert text.getvalue() == "Compiling the dense parts\n"

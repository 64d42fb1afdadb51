"""Lines that a person sees during a wait for workers."""

from __future__ import annotations

import io
import logging

from rich.console import Console

from dlrm_factory.tools.cli.progress import WorkerWait, show_compiling
from dlrm_factory.tools.server import Progress


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


def test_commands_say_that_they_compile() -> None:
    shown, text = console()
    log = logging.getLogger("dlrm_factory.compiled.dense_library")
    with show_compiling(shown):
        log.info("Compiling the dense parts")
    log.info("not told")
    assert text.getvalue() == "Compiling the dense parts\n"

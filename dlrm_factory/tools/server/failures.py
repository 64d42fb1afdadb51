"""TorchServe's logs to one message: why a server did not start, why a model did not load, what it waits for."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from dlrm_factory.tools.server.rundir import RunDir

__all__ = [
    "LogMarks",
    "load_failure",
    "load_step",
    "registration_failure",
    "startup_failure",
    "worker_lines",
]

_MODEL_LINE = re.compile(
    r"^\S+ \[\w+ *\] W-(?P<worker>\d+)-(?P<model>.+)_[^_]*?-std(?:out|err) MODEL_LOG - (?P<text>.*)$"
)
_CHAINED = ("During handling of the above exception", "The above exception was the direct cause")
# What TorchServe says when the handler's module cannot be imported, whatever the reason.
_MISLEADING = "ts.torch_handler"
# A worker that ended before it was told to load. (One that is too slow for a request is another matter.)
_UNBORN = r"(?:Backend stream closed|Backend worker startup time out|Failed start worker|Failed to connect)"
# What a worker prints for MemoryError and RuntimeError, of which TorchServe itself then logs nothing.
_REFUSED = ("Failed to load model ", "Load model ")
_MOST_LINES = 8
# What a worker says when it compiles, or waits for another process that does.
_COMPILES = ("Compiling the dense parts ", "Waiting for another process, which compiles ")
_COMPILING = "compiling the model's dense parts, about 30 s, once for this machine"


@dataclass(frozen=True, kw_only=True)
class LogMarks:
    """Where the logs of a run directory ended at some moment, so that only what came later is read."""

    run_dir: RunDir
    sizes: tuple[tuple[Path, int], ...]

    @classmethod
    def now(cls, run_dir: RunDir) -> LogMarks:
        logs = (run_dir.model_log, run_dir.ts_log, run_dir.console_log)
        return cls(run_dir=run_dir, sizes=tuple((log, _size(log)) for log in logs))

    def since(self, log: Path) -> str:
        """What was written to ``log`` since; all of it when the log was begun anew meanwhile."""
        mark = dict(self.sizes)[log]
        try:
            with log.open("rb") as handle:
                handle.seek(mark if _size(log) >= mark else 0)
                return handle.read().decode("utf-8", errors="replace")
        except OSError:
            return ""


def startup_failure(console: str) -> str:
    """Why the Java process ended, from what it printed."""
    invalid = re.search(r"^Invalid configuration: (.*)$", console, re.MULTILINE)
    if invalid:
        return f"TorchServe refuses its settings: {invalid[1]}"
    taken = re.search(r"Failed to bind to address:? (\S+)", console)
    if taken:
        return f"TorchServe cannot listen on {taken[1].strip('/')}: it is taken; give other ports"
    if "UnsupportedClassVersionError" in console:
        return "this Java is too old for TorchServe; it needs version 11 or newer (set JAVA_HOME)"
    thrown = re.search(
        r"^(?:Exception in thread \S+ |Caused by: )?((?:\w+\.)+\w*(?:Exception|Error): .*)$", console, re.M
    )
    lines = [line for line in console.splitlines() if line.strip()]
    said = thrown[1] if thrown else " / ".join(lines[-3:]) or "it printed nothing"
    return f"TorchServe stopped while starting: {said}"


def registration_failure(ts_log: str, location: str) -> str | None:
    """Why TorchServe did not register the archive ``location``; None when it says nothing of it."""
    pattern = rf"Failed to load model: {re.escape(location)}\n(?:[\w.$]*\.)?(\w+): (.*)"
    found = re.search(pattern, ts_log)
    return f"TorchServe cannot register {location}: {found[2]} ({found[1]})" if found else None


def load_failure(model_log: str, ts_log: str, model: str) -> str | None:
    """Why a worker of ``model`` died while loading it; None when none did."""
    name = re.escape(model)
    died = re.search(rf"Load model failed: {name}, error: ", ts_log)
    unborn = re.search(rf" W-\d+-{name}_\S* \S+ - Backend worker error\n\S+: {_UNBORN}", ts_log)
    lines = worker_lines(model_log, model)
    if not (died or unborn or any(line.startswith(_REFUSED) for line in lines)):
        return None
    reason = _exception(lines)
    if reason is not None:
        return f'model "{model}" did not load: {reason}'
    last = "\n".join(f"  {line}" for line in lines[-_MOST_LINES:]) or "  (nothing)"
    return (
        f'model "{model}" did not load: its worker died without an exception, as when it is killed for '
        f"memory. It printed last:\n{last}"
    )


def load_step(model_log: str, model: str) -> str:
    """Say what the workers of ``model`` have been at since they started, if that takes long; else empty."""
    lines = worker_lines(model_log, model)
    return _COMPILING if any(line.startswith(_COMPILES) for line in lines) else ""


def worker_lines(model_log: str, model: str) -> list[str]:
    """What the workers of ``model`` printed, without TorchServe's prefix."""
    matches = (_MODEL_LINE.match(line) for line in model_log.splitlines())
    return [match["text"] for match in matches if match and match["model"] == model]


def _exception(lines: list[str]) -> str | None:
    """The exception of the first traceback in ``lines``, its message whole but not too long."""
    starts = [
        index for index, line in enumerate(lines) if line.startswith("Traceback (most recent call last)")
    ]
    if not starts:
        return None
    found = [_message(lines[start + 1 :]) for start in starts]
    # Of a chain the last exception is the one raised to the top. The worker tries again and again, so only
    # the first chain is read.
    last = 0
    while last + 1 < len(starts) and any(
        line.startswith(_CHAINED) for line in lines[starts[last] : starts[last + 1]]
    ):
        last += 1
    return found[0] if _MISLEADING in found[last] else found[last]


def _message(lines: list[str]) -> str:
    """The lines after a traceback's frames: the exception, and the rest of its message."""
    body: list[str] = []
    for line in lines:
        if not body and (line.startswith(" ") or not line):
            continue
        if line.startswith((*_CHAINED, "Traceback ", "s_name_part0=", "Listening on port", "Backend worker")):
            break
        body.append(line)
    shown = [line for line in body if line.strip()][:_MOST_LINES]
    return "\n".join(shown) or "no message"


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0

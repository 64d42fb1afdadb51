from __future__ import annotations

import threading
import time
from types import SimpleNamespace

import psutil
import pytest

from dlrm_factory.errors import ServingError
from dlrm_factory.tools.server import readiness
from dlrm_factory.tools.server.management import Worker
from dlrm_factory.tools.server.readiness import (
    LogMarks,
    load_failure,
    load_step,
    registration_failure,
    startup_failure,
    wait_for_workers,
    why_ended,
)
from dlrm_factory.tools.server.rundir import RunDir

DIED = (
    "2026-01-01T00:00:00,000 [WARN ] W-9000-dlrm_1.0 org.pytorch.serve.wlm.BatchAggregator - "
    "Load model failed: dlrm, error: Worker died.\n"
)
NEVER_STARTED = (
    "2026-01-01T00:00:00,000 [ERROR] W-9000-dlrm_1.0 org.pytorch.serve.wlm.WorkerThread - "
    "Backend worker error\n"
    "org.pytorch.serve.wlm.WorkerInitializationException: Backend stream closed.\n"
)
SLOW = NEVER_STARTED.replace("Backend stream closed.", "Backend worker did not respond in given time")


def worker(*lines: str, model: str = "dlrm") -> str:
    head = f"2026-01-01T00:00:00,000 [INFO ] W-9000-{model}_1.0-stdout MODEL_LOG - "
    return "".join(f"{head}{line}\n" for line in lines)


CRASH = (
    "model_name: dlrm, batchSize: 4",
    "Backend worker process died.",
    "Traceback (most recent call last):",
    '  File "handler.py", line 3, in initialize',
    "    raise ConfigError(...)",
    "dlrm_factory.errors.ConfigError: model.yaml: 2 problems",
    "  $.tables[0].dtype: fp8",
    "  $.x: unknown",
)


def test_no_failure():
    assert load_failure(worker("[PID]1", "Torch worker started."), "", "dlrm") is None


def test_a_crash_gives_the_whole_message_and_no_traceback():
    message = load_failure(worker(*CRASH, "s_name_part0=x", *CRASH), DIED, "dlrm")
    assert message == (
        'model "dlrm" did not load: dlrm_factory.errors.ConfigError: model.yaml: 2 problems\n'
        "  $.tables[0].dtype: fp8\n  $.x: unknown"
    )


def test_another_models_crash_is_not_ours():
    assert load_failure(worker(*CRASH, model="other"), DIED.replace("dlrm", "other"), "dlrm") is None


def test_a_runtime_error_is_seen_though_torchserve_logs_nothing():
    lines = (
        "Failed to load model dlrm, exception mmap failed",
        "Traceback (most recent call last):",
        "  File ...",
        "RuntimeError: mmap failed",
        "Backend worker process died.",
        "Traceback (most recent call last):",
        "  File ...",
        "RuntimeError: 500 - Unknown exception",
    )
    assert load_failure(worker(*lines), "", "dlrm") == 'model "dlrm" did not load: RuntimeError: mmap failed'


def test_an_import_error_is_not_hidden_by_the_one_torchserve_adds():
    lines = (
        "Traceback (most recent call last):",
        "ModuleNotFoundError: No module named 'xxhash'",
        "",
        "During handling of the above exception, another exception occurred:",
        "",
        "Traceback (most recent call last):",
        "ModuleNotFoundError: No module named 'ts.torch_handler.dlrm_handler'",
    )
    message = load_failure(worker(*lines), DIED, "dlrm")
    assert message == "model \"dlrm\" did not load: ModuleNotFoundError: No module named 'xxhash'"


def test_of_a_chain_the_last_is_told():
    lines = (
        "Traceback (most recent call last):",
        "KeyError: 'x'",
        "The above exception was the direct cause of the following exception:",
        "Traceback (most recent call last):",
        "WeightsError: table t_user is missing",
    )
    assert load_failure(worker(*lines), DIED, "dlrm").endswith("WeightsError: table t_user is missing")


@pytest.mark.parametrize("ts_log", [DIED, NEVER_STARTED])
def test_a_killed_worker_shows_what_it_printed_last(ts_log):
    message = load_failure(worker("loading table t_user"), ts_log, "dlrm")
    assert "killed for memory" in message
    assert message.endswith("  loading table t_user")


def test_a_worker_that_is_too_slow_for_a_request_did_load():
    assert load_failure("", SLOW, "dlrm") is None


def test_registration():
    log = (
        "… [WARN ] main org.pytorch.serve.ModelServer - Failed to load model: dlrm.mar\n"
        "org.pytorch.serve.archive.model.InvalidModelException: Failed to parse signature.json.\n\tat …\n"
    )
    expected = "TorchServe cannot register dlrm.mar: Failed to parse signature.json. (InvalidModelException)"
    assert registration_failure(log, "dlrm.mar") == expected
    assert registration_failure(log, "other.mar") is None


@pytest.mark.parametrize(
    ("console", "part"),
    [
        ("java.io.IOException: Failed to bind to address: http://127.0.0.1:8080\n\tat x", "127.0.0.1:8080"),
        ("Invalid configuration: Invalid binding address: x", "refuses its settings: Invalid binding"),
        ('Exception in thread "main" java.lang.UnsupportedClassVersionError: org', "too old"),
        ("a\nb\nc\nd", "b / c / d"),
        ("", "it printed nothing"),
        (
            'java.lang.NumberFormatException: For input string: "x"\n\tat y',
            "NumberFormatException: For input",
        ),
    ],
)
def test_why_java_ended(console, part):
    assert part in startup_failure(console)


def test_only_what_came_after_the_mark_is_read(tmp_path):
    run_dir = RunDir.at(tmp_path / "run")
    run_dir.prepare()
    run_dir.model_log.write_text("old\n")
    marks = LogMarks.now(run_dir)
    with run_dir.model_log.open("a") as log:
        log.write("new\n")
    assert marks.since(run_dir.model_log) == "new\n"
    assert marks.since(run_dir.ts_log) == ""
    run_dir.model_log.write_text("a\n")
    assert marks.since(run_dir.model_log) == "a\n"


@pytest.mark.parametrize(
    "line",
    [
        "Compiling the dense parts in bf16, about 30 s, once for this machine (pid 7)",
        "Waiting for another process, which compiles the dense parts (pid 8)",
    ],
)
def test_a_wait_for_the_compiler_is_told(line):
    assert load_step(worker("Listening", line), "dlrm").startswith(
        "compiling the model's dense parts, about 30 s"
    )
    assert load_step(worker(line, model="other"), "dlrm") == ""
    assert load_step(worker("Listening"), "dlrm") == ""


class Died:
    """Management client of a model whose only worker has died; what it printed comes later than TorchServe's word."""

    def __init__(self, run_dir: RunDir) -> None:
        self._run_dir = run_dir

    def workers(self, model: str, version: str | None = None) -> list[Worker]:
        log = self._run_dir.model_log
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(worker("Torch worker started."))
        self._run_dir.ts_log.write_text(DIED)
        threading.Timer(0.4, log.write_text, args=(worker(*CRASH),)).start()
        return []


def test_a_traceback_that_comes_late_is_waited_for(run_dir: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readiness, "_LOG_LAG_S", 0.05)
    marks = LogMarks.now(run_dir)
    with pytest.raises(ServingError, match=r"did not load: .*ConfigError: model\.yaml"):
        wait_for_workers(
            Died(run_dir), "dlrm", 1, marks=marks, deadline=time.monotonic() + 5, tell=lambda _: None
        )


def test_a_port_that_is_taken_at_the_last_moment_is_named(run_dir: RunDir) -> None:
    run_dir.console_log.parent.mkdir(parents=True, exist_ok=True)
    marks = LogMarks.now(run_dir)
    run_dir.console_log.write_text(
        "[INFO ] main org.pytorch.serve.ModelServer - Management API bind to: http://127.0.0.1:8081\n"
        "java.io.IOException: Failed to bind to address /127.0.0.1:7070\n"
        "\tat org.pytorch.serve.ModelServer.startGRPCServer(ModelServer.java:488)\n"
    )
    this = psutil.Process()
    assert why_ended(SimpleNamespace(pid=this.pid, started=this.create_time()), marks) is None
    ended = why_ended(SimpleNamespace(pid=this.pid, started=1.0), marks)
    assert str(ended) == "TorchServe cannot listen on 127.0.0.1:7070: it is taken; give other ports"


NOT_STARTED = (
    "2026-01-01T00:00:00,000 [ERROR] W-9000-dlrm_1.0 org.pytorch.serve.wlm.WorkerThread - "
    "Backend worker error\n"
    "org.pytorch.serve.wlm.WorkerInitializationException: Failed start worker process\n"
    "\tat java.lang.Thread.run(Thread.java:840) [?:?]\n"
)
CAUSE = 'Caused by: java.io.IOException: Cannot run program "python" (in directory "{}"): error={}, {}\n'
NEXT = "2026-01-01T00:00:01,000 [WARN ] W-9000-dlrm_1.0 org.pytorch.serve.wlm.WorkerThread - Auto recovery\n"


def test_a_worker_of_a_removed_version_is_not_one_that_loads(tmp_path):
    gone = NOT_STARTED + CAUSE.format(tmp_path / "gone", 2, "No such file or directory") + NEXT
    there = NOT_STARTED + CAUSE.format(tmp_path, 12, "Cannot allocate memory") + NEXT
    assert load_failure("", gone, "dlrm") is None
    assert load_failure("", there, "dlrm") is not None
    # Both at once, and one that is not written to its end.
    assert load_failure("", gone + there, "dlrm") is not None
    assert load_failure("", NOT_STARTED, "dlrm") is None
    assert load_failure("", NOT_STARTED + NEXT + there, "dlrm") is not None
    # Java has said so in other words since.
    newer = there.replace(
        "error=12, Cannot allocate memory", "Exec failed, error: 12 (Cannot allocate memory)"
    )
    assert "Exec failed" in newer
    assert load_failure("", newer, "dlrm") is not None

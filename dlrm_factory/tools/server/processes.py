"""TorchServe's Java process and its workers: started for a run directory, found and ended."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil

from dlrm_factory.errors import ServingError
from dlrm_factory.tools.java import java_home
from dlrm_factory.tools.server.rundir import RunDir, ServerState
from dlrm_factory.tools.server.settings import ENCODING, LOG_CONFIG, ServerSettings
from dlrm_factory.tools.server.store import ServedModel

__all__ = [
    "MARK",
    "is_running",
    "launch",
    "launch_command",
    "launch_environment",
    "launch_sidecar",
    "server_processes",
    "stop_processes",
]

# Set for the Java process and so for all it starts: orphans are found by it when their parent is gone.
MARK = "DLRM_SERVER_RUN_DIR"

_JAVA_GRACE_S = 30.0
_WORKER_GRACE_S = 3.0

_LAUNCHER_TIMEOUT_S = 60
# Not imported: it imports this package.
_SIDECAR = "dlrm_factory.tools.sidecar"


def is_running(state: ServerState) -> bool:
    """True if the Java process of ``state`` is alive; a zombie or a reused pid is not."""
    try:
        process = psutil.Process(state.pid)
        same = abs(process.create_time() - state.started) < 2.0
        return same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def server_processes(run_dir: RunDir) -> list[psutil.Process]:
    """Every living process that a server of ``run_dir`` started, the Java process first."""
    found = [p for p in psutil.process_iter() if p.pid != os.getpid() and _belongs(p, str(run_dir.root))]
    return sorted(found, key=lambda process: (not _is_java(process), process.pid))


def stop_processes(run_dir: RunDir) -> int:
    """Ends every process of the server, gently first, and returns how many there were.

    The Java process ends its own workers; what still lives then (workers of a killed server, ranks stuck in a
    collective) is ended here.
    """
    processes = server_processes(run_dir)
    java = [process for process in processes if _is_java(process)]
    _signal(java, psutil.Process.terminate)
    _wait(java, _JAVA_GRACE_S)
    _signal(java, psutil.Process.kill)
    _wait(java, _WORKER_GRACE_S)
    left = server_processes(run_dir)
    _signal(left, psutil.Process.terminate)
    _wait(left, _WORKER_GRACE_S)
    # Looked up anew: a worker may have started another process meanwhile.
    left = server_processes(run_dir)
    _signal(left, psutil.Process.kill)
    _wait(left, _WORKER_GRACE_S)
    return len(processes)


def _belongs(process: psutil.Process, root: str) -> bool:
    try:
        return process.environ().get(MARK) == root and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.Error, OSError):
        return False


def _is_java(process: psutil.Process) -> bool:
    try:
        return "org.pytorch.serve.ModelServer" in process.cmdline()
    except psutil.Error:
        return False


def _signal(processes: list[psutil.Process], send: Callable[[psutil.Process], None]) -> None:
    for process in processes:
        try:
            if process.status() != psutil.STATUS_ZOMBIE:
                send(process)
        except psutil.Error:
            continue


def _wait(processes: list[psutil.Process], seconds: float) -> None:
    """Waits until all are gone. A zombie counts as gone: where nobody reaps orphans, it would never go."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and any(_lives(process) for process in processes):
        time.sleep(0.05)


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def launch(
    run_dir: RunDir,
    *,
    settings: ServerSettings,
    models: Sequence[ServedModel],
    model_store: Path,
    environment: dict[str, str],
) -> psutil.Process:
    """Starts the Java process in the background and returns it. Raises ServingError when it does not."""
    run_dir.config_file.write_text(settings.text, encoding=ENCODING)
    command = launch_command(run_dir, models, model_store, settings.own_log_config)
    with run_dir.console_log.open("ab") as console:
        # A session of its own: Ctrl-C in this terminal must reach us alone, who then stop it in order.
        launched = subprocess.run(
            command,
            cwd=run_dir.root,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=console,
            start_new_session=True,
            timeout=_LAUNCHER_TIMEOUT_S,
            check=False,
        )
    return _java_process(run_dir, Path(environment["TMPDIR"]), launched.returncode)


def launch_command(
    run_dir: RunDir, models: Sequence[ServedModel], model_store: Path, own_log_config: bool
) -> list[str]:
    """TorchServe's launcher, run by this very Python, whose packages the workers then see."""
    command = [sys.executable, "-m", "ts.model_server", "--start", "--ncs"]
    command += ["--ts-config", str(run_dir.config_file), "--model-store", str(model_store)]
    if own_log_config:
        command += ["--log-config", str(LOG_CONFIG)]
    return [*command, "--models", *(model.spec for model in models)]


def launch_environment(
    run_dir: RunDir, *, java: Path, tmp: Path, log_level: str, access_log: bool
) -> dict[str, str]:
    """The environment of the Java process, which hands it to its workers."""
    environment = dict(os.environ)
    # Each of these would overrule what the run directory says.
    for name in ("TS_CONFIG_FILE", "TS_MODEL_SERVER_HOME"):
        environment.pop(name, None)
    environment |= {
        MARK: str(run_dir.root),
        "JAVA_HOME": str(java_home(java)),
        # Workers of a group are started by the `torchrun` that PATH finds first.
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", os.defpath)]),
        "TMPDIR": str(tmp),
        "TEMP": str(tmp),
        "LOG_LOCATION": str(run_dir.logs),
        "METRICS_LOCATION": str(run_dir.logs),
        "DLRM_LOG_LEVEL": log_level,
        "DLRM_ACCESS_LOG_LEVEL": "info" if access_log else "off",
        # torchrun reads its own options here too. Without these it listens on all interfaces, for whoever connects.
        "PET_RDZV_CONF": "store_type=file,keep_alive_interval=1000000",
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
    }
    return environment | {"PYTHONPATH": _python_path(environment.get("PYTHONPATH", ""))}


def _python_path(value: str) -> str:
    """``value`` without copies of this project: workers read it before the archive, whose code must win."""
    entries = [entry for entry in value.split(os.pathsep) if entry]
    return os.pathsep.join(entry for entry in entries if not (Path(entry) / "dlrm_factory").is_dir())


def launch_sidecar(run_dir: RunDir) -> None:
    """Start the process beside the server of ``run_dir``, which ends with it; nothing if it is there.

    Raises:
        ServingError: it does not start.
    """
    command = [sys.executable, "-m", _SIDECAR, str(run_dir.root)]
    try:
        with run_dir.sidecar_log.open("ab") as log:
            # What is started here ends at once, and leaves another process.
            subprocess.run(
                command,
                cwd=run_dir.root,
                env={**os.environ, MARK: str(run_dir.root)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                timeout=_LAUNCHER_TIMEOUT_S,
                check=True,
            )
    except (OSError, subprocess.SubprocessError) as error:
        why = str(error)
        if isinstance(error, subprocess.CalledProcessError):
            why = f"it ended with status {error.returncode}"
        elif isinstance(error, subprocess.TimeoutExpired):
            why = f"it did not come up within {_LAUNCHER_TIMEOUT_S} s"
        raise ServingError(
            f"the process beside the server cannot be started: {why}; see {run_dir.sidecar_log}"
        ) from error


def _java_process(run_dir: RunDir, tmp: Path, status: int) -> psutil.Process:
    try:
        return psutil.Process(int((tmp / ".model_server.pid").read_text().strip()))
    except (OSError, ValueError, psutil.Error) as error:
        printed = run_dir.console_log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-3:]
        said = " / ".join(printed) or "it printed nothing"
        raise ServingError(f"TorchServe's launcher failed (exit status {status}): {said}") from error

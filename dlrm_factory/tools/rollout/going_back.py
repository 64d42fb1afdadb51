"""The way back from a rollout: `dlrm rollback`."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from dlrm_factory.errors import ServingError
from dlrm_factory.tools.rollout.state import KeptVersion, RolloutFile, add_history, history_entry
from dlrm_factory.tools.server import RunDir, management_client, running_server
from dlrm_factory.tools.server.processes import launch_sidecar

__all__ = ["MAX_REMOVAL_S", "Tell", "launch_or_tell", "roll_back"]

# More than the removal of a version can take.
MAX_REMOVAL_S = 180.0
_TOLD_AFTER_S = 4.0

Tell = Callable[[str], None]


def roll_back(
    model: str = "dlrm", path: Path = Path(".dlrm"), tell: Tell = lambda _: None
) -> tuple[str, str]:
    """Go back to the version before the latest rollout, or end the rollout that runs, as `dlrm rollback` does.

    Args:
        model: its name on the server.
        path: run directory of the server.
        tell: called with a line for what takes time.

    Returns:
        The version that was left, and the one that answers now.

    Raises:
        ServingError: there is none to go back to, or another model's rollout runs.
    """
    run_dir = RunDir.at(path)
    state = running_server(path)
    if state is None:
        raise ServingError(f"no server runs in {run_dir.root}")
    start = time.monotonic()
    file = RolloutFile(run_dir)
    with management_client(run_dir, state) as client:
        ended = _end_rollout(file, model, tell)
        with _held(file, model, ended, tell) as ended:
            now = client.describe(model)
            if ended is not None and now.version != ended:
                return ended, now.version
            there = {each.version: each for each in client.versions(model)}
            others = [each for each in file.model(model).kept if each.version != now.version]
            found = there.get(others[0].version) if others and not others[0].going else None
            if found is None or not found.ready:
                raise ServingError(
                    f"there is no version of {model} to go back to: {now.version} is served, and none is kept. Roll "
                    "the archive of the other one out again"
                )
            back = found.version
            client.set_default(model, back)
            left = KeptVersion(version=now.version, until=time.time())
            file.change(model, kept=(left, *others[1:]), canary=None)
    add_history(
        run_dir,
        history_entry(model, now.version, back, "rolled back", start, reason="dlrm rollback"),
    )
    launch_or_tell(run_dir, tell)
    return now.version, back


def launch_or_tell(run_dir: RunDir, tell: Tell) -> None:
    """Start the process that removes what is kept, if it is not there. What was done stays done if it fails."""
    try:
        launch_sidecar(run_dir)
    except ServingError as error:
        tell(f"warning: {error}. Until it runs no version is removed; the next `dlrm rollout` starts it too")


def _end_rollout(file: RolloutFile, model: str, tell: Tell) -> str | None:
    """Ask the rollout of ``model`` that runs to end. Return its version; None if there is none."""
    running = file.model(model).running
    if running is None or not running.lives() or running.pid == os.getpid():
        return None
    tell(f"ending the rollout of {model} {running.version} (pid {running.pid})")
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(running.pid).send_signal(signal.SIGTERM)
    return running.version


@contextlib.contextmanager
def _held(file: RolloutFile, model: str, ended: str | None, tell: Tell) -> Iterator[str | None]:
    """Hold the file as soon as what holds it is over, and say what that is if it takes long.

    Yields ``ended``, the version whose rollout was ended, or that of a rollout that has begun meanwhile.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(file.held(_TOLD_AFTER_S))
        except ServingError:
            for name, each in file.models().items():
                if name != model and each.running is not None and each.running.lives():
                    raise ServingError(
                        f"a rollout of {name} {each.running.version} runs (pid {each.running.pid}): end it by `dlrm "
                        f"rollback --model {name}`, or try again when it is over"
                    ) from None
            ended = ended or _end_rollout(file, model, tell)
            what = f"{model} {ended}" if ended is not None else "the version that a killed rollout left"
            tell(
                f"waiting until {what} is removed, for at most {MAX_REMOVAL_S:.0f} s: what it was asked is answered "
                "first. Other versions answer meanwhile"
            )
            stack.enter_context(file.held(MAX_REMOVAL_S))
        yield ended

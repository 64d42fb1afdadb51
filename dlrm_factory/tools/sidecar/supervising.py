"""The parent of the process beside a server. Small: nothing is imported that takes memory."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

from dlrm_factory.host.process import process_state

__all__ = ["detach", "supervise"]

_PAUSE_S = 1.0


def detach() -> None:
    """Go on in another process, which nobody has to wait for; this one ends."""
    if os.fork():
        os._exit(0)


def supervise(run_dir: Path) -> None:
    """Run this process's own command as a child, again and again, until the server of ``run_dir`` has ended.

    Return at once if another process does so.
    """
    lock = os.open(run_dir / ".sidecar.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    child: subprocess.Popen[bytes] | None = None

    def end(number: int, frame: FrameType | None) -> None:
        if child is not None:
            child.terminate()
        raise SystemExit(0)

    signal.signal(signal.SIGTERM, end)
    while _server_lives(run_dir):
        child = subprocess.Popen(
            [sys.executable, "-m", "dlrm_factory.tools.sidecar", *sys.argv[1:], "--child"]
        )
        status = child.wait()
        if status and _server_lives(run_dir):
            sys.stderr.write(
                f"the process beside the server ended with status {status}; it is started again\n"
            )
            sys.stderr.flush()
            time.sleep(_PAUSE_S)


def _server_lives(run_dir: Path) -> bool:
    try:
        pid = int(json.loads((run_dir / "server.json").read_text(encoding="utf-8"))["pid"])
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return process_state(pid) not in "ZX"

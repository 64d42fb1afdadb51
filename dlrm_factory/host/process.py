"""States and parents of processes, as Linux tells of them."""

from __future__ import annotations

import ctypes
import os
import signal
from pathlib import Path

__all__ = ["RANK_STORE_VARIABLE", "TEMPORARY_FAILURE", "end_with_parent", "process_start", "process_state"]

# Names a file by which ranks of one host find each other; without it torch opens a port of all interfaces.
RANK_STORE_VARIABLE = "DLRM_RANKS_STORE"
TEMPORARY_FAILURE = 75  # EX_TEMPFAIL of sysexits.h
_PR_SET_PDEATHSIG = 1


def process_state(pid: int) -> str:
    """State of a process as Linux names it: ``T`` is stopped by a signal, ``Z`` ended, and ``X`` is gone."""
    fields = _fields(pid)
    return fields[0] if fields else "X"


def process_start(pid: int) -> int:
    """Time at which a process started, in clock ticks since the machine did; 0 if it is gone.

    A pid alone may be used again.
    """
    fields = _fields(pid)
    return int(fields[19]) if fields else 0


def end_with_parent(parent: int) -> None:
    """Let the kernel kill this process when its parent, which has the pid ``parent``, has ended."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(TEMPORARY_FAILURE)


def _fields(pid: int) -> list[str]:
    """Fields of the process from its state on; none if it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return []
    return text.rpartition(")")[2].split()

"""Folder in which this host keeps what it has found out for itself: compiled code, and the files it has checked."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

__all__ = ["cache_folder"]


def cache_folder() -> Path | None:
    """A folder of ours alone: libraries are code, so nobody else may write there. None if there is none.

    ``$DLRM_CACHE_DIR``, else ``$XDG_CACHE_HOME/torchserve-dlrm`` or ``~/.cache/torchserve-dlrm``, else one in the
    temporary folder.
    """
    for folder in _candidates():
        if _is_ours(folder):
            return folder
    return None


def _candidates() -> list[Path]:
    if named := os.environ.get("DLRM_CACHE_DIR"):
        return [Path(named)]
    shared = Path(tempfile.gettempdir()) / f"torchserve-dlrm-{os.getuid()}"
    try:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser())
    except RuntimeError:  # this user has no home
        return [shared]
    return [home / "torchserve-dlrm", shared]


def _is_ours(folder: Path) -> bool:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.lstat()
        others_write = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        return (
            stat.S_ISDIR(status.st_mode)
            and status.st_uid == os.getuid()
            and not others_write
            and os.access(folder, os.W_OK)
        )
    except OSError:
        return False

"""Environment of the processes that the comparison starts."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["child_environment"]

_SCRIPTS = Path(__file__).resolve().parents[1]


def child_environment() -> dict[str, str]:
    """Environment in which ``python -m compare.…`` finds ``compare`` and the project, whatever the working folder."""
    paths = [str(_SCRIPTS), str(_SCRIPTS.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}

"""Start of the comparison: ``.venv/bin/python scripts/compare --help``."""

from __future__ import annotations

import sys
from pathlib import Path


def run() -> None:
    """Make ``scripts`` importable instead of this folder, then hand over to the command."""
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from compare.command import main

    main()


if __name__ == "__main__":
    run()

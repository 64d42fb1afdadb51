"""Start of the comparison: ``.venv/bin/python scripts/compare --help``."""

from __future__ import annotations

import sys
from pathlib import Path
<<<<<<< HEAD
from statistics import median
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from compare.archives import make_store
from compare.rows import ROWS
from compare.runs import Comparison
from compare.servers import running_targets
from dlrm_factory.config import criteo
from dlrm_factory.errors import DLRMError
from dlrm_factory.tools.cli.tables import wide_console
=======
>>>>>>> wt-compare2


def run() -> None:
    """Make ``scripts`` importable instead of this folder, then hand over to the command."""
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from compare.command import main

    main()


if __name__ == "__main__":
    run()

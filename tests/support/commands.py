"""Commands of `dlrm`, run in this process."""

from __future__ import annotations

from click.testing import Result
from typer.testing import CliRunner


def run_train(*arguments: str) -> Result:
    """``dlrm train`` with ``arguments``."""
    from dlrm_factory.tools.cli.main import app

    return CliRunner().invoke(app, ["train", *arguments])

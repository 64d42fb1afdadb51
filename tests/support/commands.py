"""Commands of `dlrm`, run in this process."""

from __future__ import annotations

from click.testing import Result
from typer.testing import CliRunner


def run_train(*arguments: str) -> Result:
    """``dlrm train`` with ``arguments``."""
    from dlrm_factory.tools.cli.main import app

    return CliRunner().invoke(app, ["train", *arguments])


# `dlrm` with the arguments given, which must end without having imported torch.
WITHOUT_TORCH = """
import sys
from dlrm_factory.cli import main
try:
    main()
finally:
    heavy = {"torch", "torchrec", "fbgemm_gpu"} & set(sys.modules)
    if heavy:
        sys.stderr.write(f"brought {heavy}")
        raise SystemExit(99)
"""

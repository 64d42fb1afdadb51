"""The `dlrm` command: registers the commands; a DLRMError becomes one message and exit status 1."""

from __future__ import annotations

import logging
import sys

import typer

from dlrm_factory.cli.archive import archive
from dlrm_factory.cli.bench import bench
from dlrm_factory.cli.plan import plan
from dlrm_factory.cli.predict import predict
from dlrm_factory.cli.preset import preset
from dlrm_factory.cli.scale import scale
from dlrm_factory.cli.serve import serve
from dlrm_factory.cli.stage import stage
from dlrm_factory.cli.stop import stop
from dlrm_factory.cli.train import train
from dlrm_factory.cli.verify import verify
from dlrm_factory.errors import DLRMError

__all__ = ["app", "main"]

app = typer.Typer(
    name="dlrm",
    help="Train, plan, archive and serve TorchRec deep learning recommendation models behind TorchServe.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
# In the order of use.
for _command in (preset, plan, train, archive, verify, stage, serve, predict, scale, stop):
    app.command()(_command)
app.add_typer(bench, name="bench")


def main() -> None:
    """Run the command line. Exits 0, or non-zero with one clear message."""
    _quiet_libraries()
    try:
        app()
    except DLRMError as error:
        print(f"dlrm: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print("dlrm: interrupted", file=sys.stderr)
        raise SystemExit(130) from None


def _quiet_libraries() -> None:
    """Let our own messages be read: TorchRec's planner warns through the root logger on every plan."""
    logging.basicConfig(level=logging.ERROR, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("dlrm_factory").setLevel(logging.WARNING)
    for name in ("torchrec", "torch.fx", "fbgemm_gpu"):
        logging.getLogger(name).setLevel(logging.ERROR)

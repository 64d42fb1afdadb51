"""The `dlrm` command: registers the commands; a DLRMError becomes one message and exit status 1."""

from __future__ import annotations

import gc
import sys

import typer

from dlrm_factory.errors import DLRMError
from dlrm_factory.tools.cli.archive import archive, stage, verify
from dlrm_factory.tools.cli.bench import bench
from dlrm_factory.tools.cli.declarations import preset
from dlrm_factory.tools.cli.evaluate import evaluate
from dlrm_factory.tools.cli.importing import import_model
from dlrm_factory.tools.cli.init import init
from dlrm_factory.tools.cli.join import join
from dlrm_factory.tools.cli.monitoring import labels, metrics, status
from dlrm_factory.tools.cli.operate import autoscale, proxy, ready, rollback, rollout
from dlrm_factory.tools.cli.plan import plan
from dlrm_factory.tools.cli.predict import predict
from dlrm_factory.tools.cli.serve import scale, serve, stop
from dlrm_factory.tools.cli.train import train
from dlrm_factory.tools.cli.trust import takes_code
from dlrm_factory.tools.cli.tune import tune
from dlrm_factory.tools.quiet import quiet_libraries
from dlrm_factory.tools.trust import recall_trust

__all__ = ["app", "main"]

app = typer.Typer(
    name="dlrm",
    help="Train, plan, archive and serve TorchRec deep learning recommendation models behind TorchServe.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
# They may be given a model whose dense net is code.
_WITH_CODE = (plan, tune, evaluate, archive, verify, stage)
# In the order of use.
for _command in (
    preset,
    init,
    plan,
    tune,
    train,
    evaluate,
    archive,
    verify,
    stage,
    serve,
    join,
    predict,
    ready,
    scale,
    status,
    metrics,
    labels,
    autoscale,
    rollout,
    rollback,
    proxy,
    stop,
):
    app.command()(takes_code(_command) if _command in _WITH_CODE else _command)
app.command(name="import")(takes_code(import_model))
app.add_typer(bench, name="bench")


def main() -> None:
    """Run the command line. Exits 0, or non-zero with one clear message."""
    quiet_libraries()
    recall_trust()
    # Half a million objects of torch stay: with the default thresholds they are looked through again and again.
    gc.set_threshold(50_000, 20, 100)
    try:
        app()
    except DLRMError as error:
        print(f"dlrm: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print("dlrm: interrupted", file=sys.stderr)
        raise SystemExit(130) from None

"""``dlrm status``, ``metrics`` and ``labels``: what a running server does, for people and for Prometheus."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.live import Live

from dlrm_factory.errors import ServingError
from dlrm_factory.tools.server import RunDir, running_server

__all__ = ["labels", "metrics", "status"]

_RUN_DIR = "The run directory given to `dlrm serve`."
RunDirOption = Annotated[Path, typer.Option(help=_RUN_DIR)]


def status(
    run_dir: RunDirOption = Path(".dlrm"),
    watch: Annotated[
        bool, typer.Option("--watch", help="Stay and look again and again, until Ctrl-C.")
    ] = False,
    interval: Annotated[
        float, typer.Option(min=0.6, max=3600, help="Seconds that rates are taken over.")
    ] = 2.0,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a page for a browser, whole in itself.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the status as JSON.")] = False,
) -> None:
    """Show workers, rates, latency, queue, memory and drift of a running server."""
    from dlrm_factory.tools.cli.status_view import status_view
    from dlrm_factory.tools.monitoring.status import StatusReader, read_status
    from dlrm_factory.tools.monitoring.status_page import status_page

    if watch and not (as_json or html):
        reader = StatusReader(RunDir.at(run_dir))
        time.sleep(min(interval, 1.0))
        # Ctrl-C is how one leaves.
        with (
            suppress(KeyboardInterrupt),
            Live(status_view(reader.read()), auto_refresh=False, screen=True) as live,
        ):
            while True:
                time.sleep(interval)
                live.update(status_view(reader.read()), refresh=True)
        return
    while True:
        found = read_status(run_dir, interval)
        if html is not None:
            _write(html, status_page(found))
        if as_json:
            typer.echo(json.dumps(found.as_dict()))
        elif html is not None:
            typer.echo(f"{html}: written")
        else:
            Console().print(status_view(found))
        if not watch:
            return


def metrics(
    run_dir: RunDirOption = Path(".dlrm"),
    temporary: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Temporary folder of a server that `dlrm serve` did not start."),
    ] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Serve GET /metrics there. Default: print once.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to serve at.")] = "127.0.0.1",
    drift_window: Annotated[
        float, typer.Option(min=60, max=3600, help="Seconds whose samples are compared with training.")
    ] = 1800.0,
) -> None:
    """Print a running server's metrics for Prometheus, or serve them."""
    from dlrm_factory.tools.monitoring.exporter import exporter_of
    from dlrm_factory.tools.monitoring.serving import MetricsServer

    exporter = exporter_of(run_dir, temporary=temporary, drift_window_s=drift_window)
    if port is None:
        typer.echo(exporter.text(), nl=False)
        return
    with MetricsServer(host, port, exporter) as server:
        typer.echo(f"metrics  http://{host}:{server.port}/metrics")
        while temporary is not None or running_server(run_dir) is not None:
            time.sleep(1)
    raise ServingError("the server has ended, and its metrics with it")


def labels(
    file: Annotated[
        Path, typer.Argument(help="CSV, Parquet or JSON lines: request_id, label, and index in the request.")
    ],
    run_dir: RunDirOption = Path(".dlrm"),
    temporary: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Temporary folder of a server that `dlrm serve` did not start."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the outcome as JSON.")] = False,
) -> None:
    """Compare what the model predicted with labels that came later, joined by the id of the request."""
    from dlrm_factory.tools.monitoring.labels import join_labels

    joined = join_labels(file, run_dir, temporary=temporary)
    if as_json:
        found = {
            "labels": joined.labels,
            "unmatched": joined.unmatched,
            "versions": [each.as_dict() for each in joined.versions],
        }
        typer.echo(json.dumps(found))
    else:
        for each in joined.versions:
            figures = each.figures
            mean = figures.label_sum / figures.joined
            typer.echo(
                f"{each.model} {each.version}: {figures.joined:,} labels, mean {mean:.4f}, "
                f"calibration {_shown(figures.calibration)}, normalized entropy {_shown(figures.normalized_entropy)}"
            )
        if joined.unmatched:
            typer.echo(
                f"{joined.unmatched:,} of {joined.labels:,} labels have no score: see docs/metrics.md",
                err=True,
            )
    if not joined.versions:
        raise ServingError(
            f"{file}: none of {joined.labels:,} labels is of a request that was scored; send the header "
            "x-dlrm-request-id with requests, and the same id here"
        )


def _shown(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"


def _write(path: Path, text: str) -> None:
    try:
        partial = path.with_name(f".{path.name}.partial")
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise ServingError(f"{path}: cannot be written: {error.strerror}") from None

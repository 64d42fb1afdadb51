"""``dlrm bench http``: load on a live endpoint."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from dlrm_factory.config import DLRMDeclaration
from dlrm_factory.errors import DataError, ServingError
from dlrm_factory.tools.archive.reading import read_archive_declaration
from dlrm_factory.tools.bench.http.bodies import (
    Body,
    BodyFormat,
    http_requests,
    random_bodies,
    read_bodies,
)
from dlrm_factory.tools.bench.http.driving import Load, drive
from dlrm_factory.tools.bench.http.finding import (
    FoundRate,
    check_picture,
    draw_found_rate,
    draw_latencies,
    find_rate,
)
from dlrm_factory.tools.bench.http.outcome import Outcome
from dlrm_factory.tools.bench.http.server import (
    ServerMeter,
    ServerUse,
    authorization,
    served_declaration,
    server_root,
)
from dlrm_factory.tools.cli.declarations import declaration_of
from dlrm_factory.tools.cli.progress import LoadProgress
from dlrm_factory.tools.cli.tables import print_found_rate, print_outcome
from dlrm_factory.tools.server import Endpoint, find_endpoint

__all__ = ["http"]

_RULES = "Requests"
_LOAD = "Load"
_SERVER = "Server"
_MANY, _FEW = 64, 8


def http(
    shape: Annotated[
        str,
        typer.Option(
            help="Samples a request: 1, 128, 512, any other number, or mlperf (100 to 700).",
            rich_help_panel=_RULES,
        ),
    ] = "1",
    body_format: Annotated[
        Literal["columns", "rows", "torchserve"],
        typer.Option("--format", help="How samples are written.", rich_help_panel=_RULES),
    ] = "columns",
    requests: Annotated[
        Path | None,
        typer.Option(
            help="Your own requests in place of generated ones: one JSON a line.", rich_help_panel=_RULES
        ),
    ] = None,
    declaration: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|ARCHIVE|PRESET",
            help="What requests are made for. Default: the served archive's.",
            rich_help_panel=_RULES,
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(help="Of generated requests and arrivals.", rich_help_panel=_RULES)
    ] = 0,
    connections: Annotated[
        int | None,
        typer.Option(
            min=1,
            help=f"Connections kept open. Default: {_MANY} for shape 1, else {_FEW}; with --rate 256.",
            rich_help_panel=_LOAD,
        ),
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option(
            min=0.1,
            help="Open loop: so many requests/s at random moments, however slowly the server answers. "
            "Default: closed loop, each connection sends again once it is answered.",
            rich_help_panel=_LOAD,
        ),
    ] = None,
    find: Annotated[
        bool,
        typer.Option(
            "--find-rate", help="Find the highest rate with p99 under --p99.", rich_help_panel=_LOAD
        ),
    ] = False,
    p99: Annotated[
        str, typer.Option(help="The bound for --find-rate, e.g. 50ms.", rich_help_panel=_LOAD)
    ] = "50ms",
    duration: Annotated[float, typer.Option(min=0.1, help="Seconds measured.", rich_help_panel=_LOAD)] = 10.0,
    warmup: Annotated[float, typer.Option(min=0, help="Seconds before.", rich_help_panel=_LOAD)] = 2.0,
    timeout: Annotated[
        float, typer.Option(min=0.1, help="Seconds until a request is given up.", rich_help_panel=_LOAD)
    ] = 30.0,
    processes: Annotated[
        int,
        typer.Option(min=1, help="Generator processes that share the load.", rich_help_panel=_LOAD),
    ] = 1,
    model: Annotated[str, typer.Option(help="Name of the model.", rich_help_panel=_SERVER)] = "dlrm",
    run_dir: Annotated[
        Path, typer.Option(help="The run directory given to `dlrm serve`.", rich_help_panel=_SERVER)
    ] = Path(".dlrm"),
    url: Annotated[
        str | None, typer.Option(help="Inference address of another server.", rich_help_panel=_SERVER)
    ] = None,
    token: Annotated[
        str | None,
        typer.Option(
            envvar="DLRM_TOKEN",
            help="Inference token. Default: that of the run directory.",
            rich_help_panel=_SERVER,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the numbers as JSON.")] = False,
    image: Annotated[Path | None, typer.Option(help="Draw the latencies: .svg, .png or .pdf.")] = None,
) -> None:
    """Put load on a running server: rates, latencies, errors, CPU and memory.

    Latency counts from the moment a request was to be sent, so that waiting is not hidden.
    """
    if image:
        check_picture(image)
    if find and rate is not None:
        raise DataError("--rate and --find-rate: give one of them")
    if connections and connections < processes:
        raise DataError(f"--processes {processes}: at most one for each of {connections} connections")
    bound_ms = _milliseconds(p99)
    endpoint = find_endpoint("inference", run_dir=run_dir, url=url, token=token)
    bodies = _bodies(endpoint, model, requests, declaration, shape, body_format, seed)
    load = Load(
        url=endpoint.url,
        requests=_requests(endpoint, model, bodies),
        samples=[body.samples for body in bodies],
        connections=connections or _connections(bodies, rate),
        rate=rate,
        warmup_s=warmup,
        duration_s=duration,
        timeout_s=timeout,
        processes=processes,
        seed=seed,
    )
    about = _about(endpoint, model, "requests of a file" if requests else shape, body_format, load)
    if find:
        _find(load, bound_ms, about, as_json, image)
    else:
        _measure(load, about, as_json, image)


def _measure(load: Load, about: dict[str, Any], as_json: bool, image: Path | None) -> None:
    with _watched(load) as progress:
        outcome = drive(load, progress)
    if as_json:
        typer.echo(json.dumps(about | outcome.as_dict() | _server(progress.uses), indent=2))
    else:
        print_outcome(outcome, about, progress.uses)
    if image and len(outcome.latencies):
        draw_latencies(outcome, _title(about), image)
    if not outcome.answered_in_window:
        raise ServingError(
            f"no request was answered with 200: {outcome.statuses or outcome.failures or 'time-out'}"
        )


def _find(load: Load, bound_ms: float, about: dict[str, Any], as_json: bool, image: Path | None) -> None:
    def run(part: Load, what: str) -> Outcome:
        with _watched(part, what) as progress:
            return drive(part, progress)

    found = find_rate(load, bound_ms=bound_ms, run=run)
    if as_json:
        typer.echo(json.dumps(about | _found_as_dict(found), indent=2))
    else:
        print_found_rate(found, about)
    if image:
        draw_found_rate(found, _title(about), image)


def _found_as_dict(found: FoundRate) -> dict[str, Any]:
    return {
        "highest_rate": found.rate,
        "p99_bound_ms": found.bound_ms,
        "closed_loop": found.closed_loop.as_dict(),
        "trials": [{"rate": t.rate, "held": t.held} | t.outcome.as_dict() for t in found.trials],
    }


@contextmanager
def _watched(load: Load, what: str = "") -> Iterator[LoadProgress]:
    root = server_root(load.url)
    with LoadProgress(
        Console(stderr=True), load.seconds, what, ServerMeter(root) if root else None
    ) as progress:
        yield progress


def _bodies(
    endpoint: Endpoint,
    model: str,
    requests: Path | None,
    declaration: str | None,
    shape: str,
    body_format: BodyFormat,
    seed: int,
) -> list[Body]:
    if requests:
        return read_bodies(requests)
    found = _declaration(declaration) if declaration else served_declaration(endpoint, model)
    return random_bodies(found, shape, body_format=body_format, seed=seed)


def _declaration(named: str) -> DLRMDeclaration:
    if named.endswith(".mar") or Path(named).is_dir():
        return read_archive_declaration(Path(named))
    return declaration_of(named)


def _requests(endpoint: Endpoint, model: str, bodies: list[Body]) -> list[bytes]:
    return http_requests(bodies, url=endpoint.url, model=model, authorization=authorization(endpoint))


def _connections(bodies: list[Body], rate: float | None) -> int:
    if rate is not None:
        return 256
    return _MANY if all(body.samples == 1 for body in bodies) else _FEW


def _milliseconds(text: str) -> float:
    factor = {"ms": 1.0, "s": 1000.0}
    number = text.strip().rstrip("ms")
    unit = text.strip()[len(number) :] or "ms"
    try:
        value = float(number) * factor[unit]
    except (ValueError, KeyError):
        value = 0.0
    if value <= 0:
        raise DataError(f'--p99 "{text}": give a time such as 50ms or 0.1s')
    return value


def _about(endpoint: Endpoint, model: str, shape: str, body_format: str, load: Load) -> dict[str, Any]:
    return {
        "url": endpoint.url,
        "model": model,
        "shape": shape,
        "format": body_format,
        "mean_request_bytes": sum(map(len, load.requests)) / len(load.requests),
        "connections": load.connections,
        "generator_processes": load.processes,
    }


def _server(uses: list[ServerUse]) -> dict[str, Any]:
    return {"server_processes": [use.as_dict() for use in uses]}


def _title(about: dict[str, Any]) -> str:
    size = f"{about['shape']} samples a request ({about['format']})"
    return f"{about['model']}: {size}, {about['connections']} connections"

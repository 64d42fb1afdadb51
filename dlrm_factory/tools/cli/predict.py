"""``dlrm predict``: send one JSON request to a running server."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from rich.console import Console

from dlrm_factory.errors import ServingError
from dlrm_factory.tools.server import error_text, find_endpoint
from dlrm_factory.tools.server import predict as send

__all__ = ["predict"]


def predict(
    file: Annotated[
        str, typer.Argument(metavar="[FILE|-]", help="A JSON file, or - for standard input.")
    ] = "-",
    model: Annotated[str, typer.Option(help="Name of the model.")] = "dlrm",
    version: Annotated[
        str | None,
        typer.Option(help="Version of the model. [default: its default version]", show_default=False),
    ] = None,
    run_dir: Annotated[Path, typer.Option(help="The run directory given to `dlrm serve`.")] = Path(".dlrm"),
    url: Annotated[str | None, typer.Option(help="Inference address of another server.")] = None,
    token: Annotated[
        str | None,
        typer.Option(envvar="DLRM_TOKEN", help="Inference token. Default: that of the run directory."),
    ] = None,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds to wait for the answer.")] = 120.0,
    outputs: Annotated[
        str | None,
        typer.Option(
            metavar="A,B", help="Outputs to ask for. [default: as the request says]", show_default=False
        ),
    ] = None,
    rank_by: Annotated[
        str | None,
        typer.Option(
            metavar="EXPRESSION",
            help="What a ranking sorts by, such as 'click * price'. [default: as the request says]",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print the answer as it came, errors too. Default: unless a terminal."),
    ] = False,
) -> None:
    """Ask a running server for predictions."""
    body = _asking(_read(file), outputs, rank_by)
    endpoint = find_endpoint("inference", run_dir=run_dir, url=url, token=token)
    response = send(endpoint, model, body, timeout, version)
    if response.is_success:
        _show(response, raw=as_json or not sys.stdout.isatty())
        return
    if as_json:
        _show(response, raw=True)
        raise typer.Exit(1)
    raise ServingError(error_text(response))


def _read(file: str) -> bytes:
    if file != "-":
        try:
            return Path(file).read_bytes()
        except OSError as error:
            raise ServingError(f"request file {file} cannot be read: {error.strerror}") from error
    if sys.stdin.isatty():
        raise ServingError(
            "no request: name a JSON file, or pipe one in, as in `dlrm predict < request.json`"
        )
    body = sys.stdin.buffer.read()
    if not body.strip():
        raise ServingError("the request on standard input is empty; it must be JSON")
    return body


def _asking(body: bytes, outputs: str | None, rank_by: str | None) -> bytes:
    """``body`` with what the options ask for in place of what it says. ServingError if it is no JSON object."""
    asked: dict[str, Any] = {}
    if outputs is not None:
        asked["outputs"] = [name.strip() for name in outputs.split(",")]
    if rank_by is not None:
        asked["rank_by"] = rank_by
    if not asked:
        return body
    try:
        request = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ServingError(
            f"the request is not JSON ({error}); --outputs and --rank-by need a JSON object"
        ) from None
    if not isinstance(request, dict):
        raise ServingError("the request is not a JSON object; --outputs and --rank-by need one")
    return json.dumps({**request, **asked}).encode()


def _show(response: httpx.Response, raw: bool) -> None:
    if raw or "json" not in response.headers.get("content-type", ""):
        sys.stdout.buffer.write(response.content.rstrip(b"\n") + b"\n")
        sys.stdout.buffer.flush()
    else:
        Console().print_json(response.text)

"""``dlrm ready``, ``rollout``, ``rollback``, ``proxy``, ``autoscale``: a running server, asked and changed."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.markup import escape

from dlrm_factory.errors import ServingError
from dlrm_factory.tools.cli.interrupts import interruptible
from dlrm_factory.tools.cli.progress import WorkerWait
from dlrm_factory.tools.rollout import (
    RolloutBounds,
    RolloutFile,
    RolloutOptions,
    proxy_config,
    read_history,
    roll_back,
    roll_out,
)
from dlrm_factory.tools.server import RunDir, health_of, running_server
from dlrm_factory.tools.sidecar.autoscaling import AutoscaleSettings, autoscale_model

__all__ = ["autoscale", "proxy", "ready", "rollback", "rollout"]

_POLL_S = 0.5
_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_RUN_DIR = "The run directory given to `dlrm serve`."


def ready(
    run_dir: Annotated[Path, typer.Option(help="The run directory given to `dlrm serve`.")] = Path(".dlrm"),
    wait: Annotated[float, typer.Option(min=0, help="Seconds to wait until it is.")] = 0.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the readiness as JSON.")] = False,
) -> None:
    """Tell whether requests may be sent: exit status 0 if so, else 1 and the reason."""
    end = time.monotonic() + wait
    found = health_of(run_dir)
    while not found.ready and time.monotonic() < end:
        time.sleep(min(_POLL_S, max(end - time.monotonic(), 0)))
        found = health_of(run_dir)
    if as_json:
        typer.echo(json.dumps(found.as_dict()))
    elif found.ready:
        parts = [f"{each.model} {each.version}: {each.ready} of {each.needed}" for each in found.models]
        typer.echo(f"ready: {', '.join(parts)} workers")
    else:
        typer.echo(f"not ready: {found.reason}")
    if not found.ready:
        raise typer.Exit(1)


def _seconds(text: str) -> float:
    """Seconds of ``90``, ``90s``, ``10m``, ``1h`` or ``1d``."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", text.strip())
    if match is None:
        raise typer.BadParameter(
            f'"{text}" is no time; give seconds, or a number with s, m, h or d, as in 10m'
        )
    return float(match[1]) * _UNITS[match[2]]


def _share(text: str) -> float:
    """Share in [0, 1] of ``5%`` or ``0.05``."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) *(%?)", text.strip())
    share = float(match[1]) / (100 if match[2] else 1) if match else -1.0
    if not 0 <= share <= 1:
        raise typer.BadParameter(
            f'"{text}" is no share; give a percentage or a number up to 1, as in 5% or 0.05'
        )
    return share


def rollout(
    archive: Annotated[
        Path | None,
        typer.Argument(metavar="NEW.mar", help="The new version: a path, or a name in the model store."),
    ] = None,
    model: Annotated[str, typer.Option(help="Name of the model.")] = "dlrm",
    shadow: Annotated[
        bool, typer.Option("--shadow", help="First score live requests by both versions, and compare.")
    ] = False,
    canary: Annotated[
        str, typer.Option(metavar="SHARE", help="Then let a share of the keys ask the new version, as in 5%.")
    ] = "0%",
    for_: Annotated[str, typer.Option("--for", metavar="TIME", help="How long the canary takes.")] = "10m",
    watch: Annotated[
        str, typer.Option(metavar="TIME", help="How long the new version is watched once it is the default.")
    ] = "10s",
    keep: Annotated[
        str, typer.Option(metavar="TIME", help="How long the old version stays, for `dlrm rollback`.")
    ] = "10m",
    max_error_rate: Annotated[
        str, typer.Option(metavar="SHARE", help="The most requests answered with a 5xx.")
    ] = "1%",
    max_p99_ratio: Annotated[
        float, typer.Option(min=1, help="The most that p99 may be, over that of the old version.")
    ] = 2.0,
    max_psi: Annotated[
        float, typer.Option(min=0, help="The most that scores may shift, as population stability index.")
    ] = 0.25,
    shadow_requests: Annotated[int, typer.Option(min=1, help="Requests that --shadow scores.")] = 500,
    shadow_time: Annotated[
        str, typer.Option(metavar="TIME", help="How long --shadow waits for so many.")
    ] = "60s",
    timeout: Annotated[float, typer.Option(min=1, help="Seconds until the workers must be ready.")] = 600.0,
    may_lack_memory: Annotated[
        bool,
        typer.Option("--may-lack-memory", help="Go on where both versions' workers do not fit in memory."),
    ] = False,
    history: Annotated[
        bool, typer.Option("--history", help="Show what has been rolled out, and why not.")
    ] = False,
    run_dir: Annotated[Path, typer.Option(help=_RUN_DIR)] = Path(".dlrm"),
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the outcome, or the history, as JSON.")
    ] = False,
) -> None:
    """Make another archive the version that is served, without losing a request; if it is worse, nothing changes."""
    if history:
        _show_history(read_history(run_dir), as_json)
        return
    if archive is None:
        raise typer.BadParameter("name the archive of the new version, or ask for --history")
    options = RolloutOptions(
        archive=archive,
        model=model,
        run_dir=run_dir,
        canary=_share(canary),
        canary_s=_seconds(for_),
        shadow=shadow,
        shadow_requests=shadow_requests,
        shadow_s=_seconds(shadow_time),
        watch_s=_seconds(watch),
        keep_s=_seconds(keep),
        bounds=RolloutBounds(
            max_error_rate=_share(max_error_rate), max_p99_ratio=max_p99_ratio, max_psi=max_psi
        ),
        timeout=timeout,
        may_lack_memory=may_lack_memory,
    )
    console = Console(stderr=True)
    with interruptible(), console.status(escape(f"{model}: rolling out {archive.name}")) as status:
        done = roll_out(options, _lines(console), WorkerWait(console, status))
    if as_json:
        typer.echo(
            json.dumps(
                {
                    "model": model,
                    "from": done.old,
                    "to": done.new,
                    "seconds": round(done.seconds, 2),
                    **done.steps,
                }
            )
        )
        return
    typer.echo(
        f"rolled out: {model} {done.old} → {done.new} in {done.seconds:.1f} s; {done.old} stays for {keep} "
        "(`dlrm rollback` goes back to it)"
    )


def rollback(
    model: Annotated[str, typer.Option(help="Name of the model.")] = "dlrm",
    run_dir: Annotated[Path, typer.Option(help=_RUN_DIR)] = Path(".dlrm"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the outcome as JSON.")] = False,
) -> None:
    """Go back to the version before the latest rollout, or end the rollout that runs."""
    start = time.monotonic()
    left, now = roll_back(model, run_dir, _lines(Console(stderr=True)))
    seconds = time.monotonic() - start
    if as_json:
        typer.echo(json.dumps({"model": model, "from": left, "to": now, "seconds": round(seconds, 2)}))
    else:
        typer.echo(f"rolled back: {model} {now} answers again, not {left} ({seconds:.2f} s)")


def proxy(
    canary: Annotated[str, typer.Option(metavar="SHARE", help="Share of the keys, as in 5%.")],
    key: Annotated[
        str, typer.Option(help="Variable of nginx that says who asks.", show_default=True)
    ] = "$http_x_user_id",
    version: Annotated[
        str | None, typer.Option(help="Version of the canary. Default: that of the rollout that runs.")
    ] = None,
    model: Annotated[str, typer.Option(help="Name of the model.")] = "dlrm",
    server: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Predictions of the server. Default: the running one."),
    ] = None,
    listen: Annotated[str, typer.Option(metavar="HOST:PORT", help="Of the proxy.")] = "127.0.0.1:8000",
    run_dir: Annotated[Path, typer.Option(help=_RUN_DIR)] = Path(".dlrm"),
) -> None:
    """Print a configuration of nginx that sends a share of the keys to a canary."""
    state = running_server(run_dir)
    if server is None:
        server = state.inference.removeprefix("http://") if state else "127.0.0.1:8080"
    typer.echo(
        proxy_config(
            version=version or _running_version(run_dir, model),
            share=_share(canary),
            key=key,
            model=model,
            server=server,
            listen=listen,
        ),
        nl=False,
    )


def autoscale(
    min_workers: Annotated[int, typer.Option("--min", min=1, help="Fewest workers.")] = 1,
    max_workers: Annotated[int, typer.Option("--max", min=1, help="Most workers.")] = 4,
    queue_ms: Annotated[
        float, typer.Option(help="Mean time in the queue, in ms, above which a worker is added.")
    ] = 5.0,
    up_after: Annotated[str, typer.Option(metavar="TIME", help="How long it must be above that.")] = "10s",
    down_after: Annotated[
        str, typer.Option(metavar="TIME", help="How long below a quarter, before a worker is taken away.")
    ] = "2m",
    off: Annotated[bool, typer.Option("--off", help="Scale no longer; the workers stay.")] = False,
    model: Annotated[str, typer.Option(help="Name of the model.")] = "dlrm",
    run_dir: Annotated[Path, typer.Option(help=_RUN_DIR)] = Path(".dlrm"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the outcome as JSON.")] = False,
) -> None:
    """Let the number of workers follow the queue time, from now until the server is stopped."""
    settings = AutoscaleSettings(
        min_workers=min_workers,
        max_workers=max_workers,
        queue_ms=queue_ms,
        up_after_s=_seconds(up_after),
        down_after_s=_seconds(down_after),
    )
    warning = autoscale_model(None if off else settings, model=model, run_dir=run_dir)
    if off:
        typer.echo(
            json.dumps({"model": model, "autoscale": None}) if as_json else f"{model}: scaled no longer"
        )
        return
    if warning:
        typer.echo(f"warning: {model}: {warning}", err=True)
    if as_json:
        typer.echo(json.dumps({"model": model, "autoscale": msgspec.to_builtins(settings)}))
    else:
        typer.echo(
            f"{model}: {min_workers} to {max_workers} workers, by a queue time of {queue_ms:g} ms; what is done is in "
            f"{RunDir.at(run_dir).sidecar_log}"
        )


def _running_version(run_dir: Path, model: str) -> str:
    running = RolloutFile(RunDir.at(run_dir)).model(model).running
    if running is None:
        raise ServingError(
            f"no rollout of {model} runs in {run_dir}; say which version is the canary: --version 2.0"
        )
    return running.version


def _lines(console: Console) -> Any:
    return lambda line: console.print(escape(line), soft_wrap=True, highlight=False)


def _show_history(entries: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(entries))
        return
    if not entries:
        typer.echo("nothing has been rolled out")
    for each in entries:
        reason = f": {each['reason']}" if each.get("reason") else ""
        typer.echo(
            f"{each.get('at')}  {each.get('model')} {each.get('from')} → {each.get('to')}  {each.get('outcome')} "
            f"({each.get('seconds')} s){reason}"
        )

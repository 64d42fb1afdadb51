"""The servers that are compared, all up at the same time: an idle one costs nothing, and runs can take turns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from compare.archives import Store
from dlrm_factory.tools.bench.http.bodies import Body, http_requests
from dlrm_factory.tools.bench.http.driving import Load
from dlrm_factory.tools.bench.http.server import authorization
from dlrm_factory.tools.server import (
    RunningServer,
    ServeOptions,
    find_endpoint,
    management_client,
    scale_model,
    start_server,
    stop_server,
)
from dlrm_factory.tools.server.settings import LOG_CONFIG

__all__ = ["Target", "running_targets"]

_PORTS = ("inference_address", "management_address", "metrics_address", "grpc_inference_port")

# The stock handler gets dicts, as TorchServe makes them of JSON; logs are off, metrics are not written to a log.
_STOCK = f"""\
async_logging=true
metrics_mode=prometheus
disable_system_metrics=true
job_queue_size=1000
vmargs=-Dlog4j.configurationFile={LOG_CONFIG.as_uri()}
"""
# TorchServe's own logging set-up, from inside its jar.
_DEFAULT = "vmargs=-Dlog4j.configurationFile=classpath:log4j2.xml\n"


@dataclass(frozen=True, kw_only=True)
class Target:
    """One model of a running server."""

    name: str
    server: RunningServer

    def load(self, bodies: Sequence[Body], *, connections: int, rate: float | None, seconds: float) -> Load:
        """``bodies`` for this model, see `Load`."""
        endpoint = find_endpoint("inference", run_dir=self.server.run_dir.root, url=None, token=None)
        let_in = authorization(endpoint)
        return Load(
            url=endpoint.url,
            requests=http_requests(bodies, url=endpoint.url, model=self.name, authorization=let_in),
            samples=[body.samples for body in bodies],
            connections=connections,
            rate=rate,
            warmup_s=1.0,
            duration_s=seconds,
        )

    def scale(self, workers: int) -> None:
        """Returns when so many workers are ready."""
        with management_client(self.server.run_dir, self.server.state) as client:
            scale_model(client, self.name, workers)


@contextmanager
def running_targets(store: Store, folder: Path) -> Iterator[dict[str, Target]]:
    """Every model of the store by name, until the block ends."""
    (folder / "stock.properties").write_text(_STOCK, encoding="utf-8")
    (folder / "default.properties").write_text(_DEFAULT, encoding="utf-8")
    groups = {
        tuple(
            f"{name}{suffix}" for name in ("dlrm", "echo", "plain_echo") for suffix in ("", "_latency")
        ): None,
        ("stock",): folder / "stock.properties",
        ("stock_default",): folder / "default.properties",
    }
    with ExitStack() as stack:
        targets: dict[str, Target] = {}
        for names, base in groups.items():
            server = stack.enter_context(_serving(store, names, base, folder / f"run-{names[0]}"))
            targets |= {name: Target(name=name, server=server) for name in names}
        yield targets


@contextmanager
def _serving(store: Store, names: Sequence[str], base: Path | None, run_dir: Path) -> Iterator[RunningServer]:
    options = ServeOptions(
        model_store=store.folder,
        models=tuple(f"{name}={name}" for name in names),
        run_dir=run_dir,
        ports=dict.fromkeys([*_PORTS, "grpc_management_port"], 0),
        ts_config=base,
    )
    server = start_server(options)
    try:
        yield server
    finally:
        stop_server(run_dir)

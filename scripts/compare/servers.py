"""Servers that are compared, all up at the same time: an idle one costs nothing, and measurements can take turns."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from compare.archives import Store
from compare.fastapi_server import KINDS, running_fastapi
from dlrm_factory.errors import ServingError
from dlrm_factory.tools.bench.http.bodies import Body, http_requests
from dlrm_factory.tools.bench.http.driving import Load
from dlrm_factory.tools.bench.http.server import authorization
from dlrm_factory.tools.server import (
    Endpoint,
    RunningServer,
    ServeOptions,
    find_endpoint,
    management_client,
    scale_model,
    start_server,
    stop_server,
)
from dlrm_factory.tools.server.settings import LOG_CONFIG

__all__ = ["Target", "TorchServeTarget", "running_targets"]

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
    """One model behind HTTP, at ``url``/predictions/``name``."""

    name: str
    url: str

    def load(self, bodies: Sequence[Body], *, connections: int, rate: float | None, seconds: float) -> Load:
        """``bodies`` for this model, see `Load`."""
        let_in = self._authorization()
        return Load(
            url=self.url,
            requests=http_requests(bodies, url=self.url, model=self.name, authorization=let_in),
            samples=[body.samples for body in bodies],
            connections=connections,
            rate=rate,
            warmup_s=1.0,
            duration_s=seconds,
        )

    def scale(self, workers: int) -> None:
        """Return when so many workers are ready. ServingError where the server has but one process."""
        raise ServingError(f"{self.name} cannot be scaled")

    def _authorization(self) -> str | None:
        return None


@dataclass(frozen=True, kw_only=True)
class TorchServeTarget(Target):
    """One model of a running TorchServe."""

    server: RunningServer

    def scale(self, workers: int) -> None:
        with management_client(self.server.run_dir, self.server.state) as client:
            scale_model(client, self.name, workers)

    def _authorization(self) -> str | None:
        # Tokens expire, so each load asks anew.
        return authorization(_inference(self.server))


@contextmanager
def running_targets(store: Store, folder: Path, names: Collection[str]) -> Iterator[dict[str, Target]]:
    """Targets by name, until the block ends; a server is started where one of ``names`` is its model."""
    (folder / "stock.properties").write_text(_STOCK, encoding="utf-8")
    (folder / "default.properties").write_text(_DEFAULT, encoding="utf-8")
    ours = [f"{name}{suffix}" for name in ("dlrm", "echo", "plain_echo") for suffix in ("", "_latency")]
    groups: list[tuple[list[str], Path | None]] = [
        (ours, None),
        (["stock"], folder / "stock.properties"),
        (["stock_default"], folder / "default.properties"),
    ]
    with ExitStack() as stack:
        targets: dict[str, Target] = {}
        for group, base in groups:
            wanted = [name for name in group if name in names]
            if not wanted:
                continue
            server = stack.enter_context(_serving(store, wanted, base, folder / f"run-{group[0]}"))
            url = _inference(server).url
            targets |= {name: TorchServeTarget(name=name, url=url, server=server) for name in wanted}
        for kind in KINDS:
            if kind in names:
                url = stack.enter_context(running_fastapi(kind, store.sealed, folder / f"{kind}.log"))
                targets[kind] = Target(name=kind, url=url)
        yield targets


def _inference(server: RunningServer) -> Endpoint:
    return find_endpoint("inference", run_dir=server.run_dir.root, url=None, token=None)


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

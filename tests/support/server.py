"""A real TorchServe for tests."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from dlrm_factory.config import tiny
from dlrm_factory.tools.archive.sealing import archive_model
from dlrm_factory.tools.server import RunningServer, ServeOptions, find_endpoint, start_server, stop_server
from dlrm_factory.weights.checkpoint import save_checkpoint
from support.batches import random_state, uncompiled

ANY_PORTS = dict.fromkeys(
    (
        "inference_address",
        "management_address",
        "metrics_address",
        "grpc_inference_port",
        "grpc_management_port",
    ),
    0,
)


@contextlib.contextmanager
def serving(
    store: Path, *models: str, run_dir: Path, workers: int | None = None, **others: Any
) -> Iterator[RunningServer]:
    """``models`` (NAME=ARCHIVE) of ``store``, served on free ports until the block ends. ``others``: more options."""
    options = ServeOptions(
        model_store=store,
        models=models,
        run_dir=run_dir,
        ports=ANY_PORTS,
        workers=workers,
        timeout=120,
        **others,
    )
    server = start_server(options)
    try:
        yield server
    finally:
        stop_server(run_dir)


@contextlib.contextmanager
def serving_tiny(folder: Path) -> Iterator[RunningServer]:
    """Preset `tiny` with random weights as "tiny", version 2.1, scored eagerly, until the block ends."""
    (folder / "store").mkdir()
    checkpoint = folder / "checkpoint.safetensors"
    save_checkpoint(checkpoint, uncompiled(tiny()), random_state(tiny()))
    archive_model(checkpoint, folder / "store" / "tiny.mar", model_name="tiny", version="2.1")
    with serving(folder / "store", "tiny=tiny.mar", run_dir=folder / "run") as running:
        yield running


@contextlib.contextmanager
def inference_client(server: RunningServer) -> Iterator[httpx.Client]:
    """A client of the server's predictions, with its token."""
    endpoint = find_endpoint("inference", run_dir=server.run_dir.root, url=None, token=None)
    with httpx.Client(base_url=endpoint.url, auth=endpoint.auth, timeout=60, trust_env=False) as client:
        yield client


def ask(client: httpx.Client, model: str, request: Any) -> Any:
    """The answer to ``request``, which must be a 200."""
    response = client.post(
        f"/predictions/{model}", content=json.dumps(request), headers={"Content-Type": "application/json"}
    )
    assert response.status_code == 200, response.text
    return response.json()

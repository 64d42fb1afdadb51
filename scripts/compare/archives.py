"""The archives that are compared: one model with random weights, under several handlers and settings."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import msgspec

from dlrm_factory.config import DLRMDeclaration, dump_declaration
from dlrm_factory.tools.archive.model_config import MODEL_CONFIG_FILE
from dlrm_factory.tools.archive.sealing import MANIFEST, archive_model
from dlrm_factory.tools.bench.score import RandomWeights
from dlrm_factory.weights.seal import DECLARATION_FILE
from dlrm_factory.weights.sealed import seal_folder, seal_weights

__all__ = ["Store", "make_store"]

_HANDLERS = Path(__file__).with_name("handlers")


@dataclass(frozen=True, kw_only=True)
class Store:
    """Folder archives in one model store, the sealed weights beside it.

    Archives: ``dlrm``, ``echo`` and ``plain_echo`` in the throughput profile, the same with ``_latency`` with batches
    of one; ``stock`` with batches of 64 and 2 ms, ``stock_default`` with TorchServe's own settings.
    """

    folder: Path
    sealed: Path


def make_store(declaration: DLRMDeclaration, folder: Path) -> Store:
    """Make the sealed weights and all archives in ``folder``."""
    serving = msgspec.structs.replace(declaration.serving, compile="before_ready", min_workers=1)
    throughput = msgspec.structs.replace(declaration, serving=serving)
    latency = msgspec.structs.replace(
        declaration, serving=msgspec.structs.replace(serving, profile="latency")
    )
    store = Store(folder=folder / "model_store", sealed=folder / "sealed")
    seal_weights(RandomWeights(throughput), store.sealed)
    for suffix, declared in (("", throughput), ("_latency", latency)):
        sealed = _declared(store.sealed, declared, folder / f"sealed{suffix or '_throughput'}")
        for name in ("dlrm", "echo", "plain_echo"):
            archive_model(sealed, store.folder / (name + suffix), model_name=name, archive_format="directory")
        for name in ("echo", "plain_echo"):
            _use_handler(store.folder / (name + suffix), f"{name}_handler.py")
    for name, model_config in (
        ("stock", "minWorkers: 1\nmaxWorkers: 1\nbatchSize: 64\nmaxBatchDelay: 2\n"),
        ("stock_default", "minWorkers: 1\nmaxWorkers: 1\n"),
    ):
        archive_model(store.sealed, store.folder / name, model_name=name, archive_format="directory")
        _use_handler(store.folder / name, "stock_handler.py")
        (store.folder / name / MODEL_CONFIG_FILE).write_text(model_config, encoding="utf-8")
        seal_folder(store.folder / name)
    return store


def _declared(sealed: Path, declaration: DLRMDeclaration, folder: Path) -> Path:
    """The same weights with another declaration; tables are linked."""
    shutil.copytree(sealed, folder, copy_function=os.link)
    (folder / DECLARATION_FILE).unlink()
    (folder / DECLARATION_FILE).write_text(dump_declaration(declaration), encoding="utf-8")
    seal_folder(folder)
    return folder


def _use_handler(archive: Path, file: str) -> None:
    """Make ``file`` the handler of the folder ``archive``."""
    shutil.copyfile(_HANDLERS / file, archive / file)
    manifest = json.loads((archive / MANIFEST).read_text(encoding="utf-8"))
    manifest["model"]["handler"] = file
    (archive / MANIFEST).write_text(json.dumps(manifest, indent=2), encoding="utf-8")
    seal_folder(archive)

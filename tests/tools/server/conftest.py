"""Model stores without a server."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from dlrm_factory.tools.server.rundir import RunDir

MANIFEST = {"model": {"modelName": "dlrm", "modelVersion": "1.0", "handler": "dlrm_handler.py"}}


@pytest.fixture
def store(tmp_path: Path) -> Path:
    folder = tmp_path / "model_store"
    folder.mkdir()
    return folder


@pytest.fixture
def add_archive(store: Path) -> Callable[..., Path]:
    """Writes an archive into the store: a manifest and ``size`` bytes of weights."""

    def add(name: str = "dlrm.mar", manifest: object = MANIFEST, size: int = 10) -> Path:
        path = store / name
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("MAR-INF/MANIFEST.json", json.dumps(manifest))
            for handler in ("dlrm_handler.py", "h.py"):
                archive.writestr(handler, "class H: ...\n")
            archive.writestr("weights.bin", b"\0" * size)
        return path

    return add


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    made = RunDir.at(tmp_path / "run")
    made.prepare()
    return made

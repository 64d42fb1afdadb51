from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from dlrm_factory.config import DLRMDeclaration, tiny
from dlrm_factory.tools.training import TrainingReport, train

ROWS = 8000


@dataclass(frozen=True)
class Trained:
    """A tiny model; ``data``: its generated clicks."""

    declaration: DLRMDeclaration
    checkpoint: Path
    data: Path
    report: TrainingReport


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Trained:
    """Model trained on generated clicks."""
    folder = tmp_path_factory.mktemp("trained")
    declaration = tiny()
    options = msgspec.structs.replace(declaration.training, epochs=2)
    declaration = msgspec.structs.replace(declaration, training=options)
    paths = folder / "model.safetensors", folder / "clicks.parquet"
    report = train(declaration, output=paths[0], rows=ROWS, write_data=paths[1])
    return Trained(declaration, *paths, report)


@pytest.fixture(scope="session")
def on_files(trained, tmp_path_factory) -> Trained:
    """Model trained on the same clicks, from their file: nothing says any more that they were generated."""
    path = tmp_path_factory.mktemp("on_files") / "model.safetensors"
    report = train(trained.declaration, output=path, data=[trained.data])
    return Trained(trained.declaration, path, trained.data, report)

"""Small checkpoints to archive."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import torch

from dlrm_factory.config import tiny
from dlrm_factory.model.model import make_model
from dlrm_factory.tools.training import train
from dlrm_factory.weights.checkpoint import open_checkpoint, save_checkpoint
from dlrm_factory.weights.sealed import seal_weights


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with seeded weights."""
    path = tmp_path_factory.mktemp("checkpoint") / "tiny.safetensors"
    generator = torch.Generator().manual_seed(3)
    shapes = make_model(tiny(), dense_device="meta").state_dict()
    state = {key: torch.randn(value.shape, generator=generator) for key, value in shapes.items()}
    save_checkpoint(path, tiny(), state)
    return path


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny` with int8 and int4 tables, trained for a moment."""
    dtypes = ("int8", "fp16", "int4")
    tables = [
        msgspec.structs.replace(table, dtype=dtype)
        for table, dtype in zip(tiny().tables, dtypes, strict=True)
    ]
    path = tmp_path_factory.mktemp("verify") / "c.safetensors"
    train(msgspec.structs.replace(tiny(), tables=tables), output=path, rows=4000)
    return path


@pytest.fixture
def sealed(trained: Path, tmp_path: Path) -> Path:
    seal_weights(open_checkpoint(trained), tmp_path / "sealed")
    return tmp_path / "sealed"

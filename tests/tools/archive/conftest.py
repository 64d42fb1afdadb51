"""A small checkpoint to archive."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dlrm_factory.config import tiny
from dlrm_factory.model.model import make_model
from dlrm_factory.weights.checkpoint import save_checkpoint


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with seeded weights."""
    path = tmp_path_factory.mktemp("checkpoint") / "tiny.safetensors"
    generator = torch.Generator().manual_seed(3)
    shapes = make_model(tiny(), dense_device="meta").state_dict()
    state = {key: torch.randn(value.shape, generator=generator) for key, value in shapes.items()}
    save_checkpoint(path, tiny(), state)
    return path

"""A real server never serves from a worker that does not give the golden scores."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from support.batches import random_state, uncompiled
from support.server import serving

from dlrm_factory.config import tiny
from dlrm_factory.errors import ServingError
from dlrm_factory.tools.archive.sealing import archive_model
from dlrm_factory.weights.checkpoint import save_checkpoint
from dlrm_factory.weights.sealed import seal_folder

pytestmark = pytest.mark.integration


def test_a_worker_that_scores_otherwise_never_reports_ready(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "c.safetensors", uncompiled(tiny()), random_state(tiny()))
    folder = tmp_path / "store" / "dlrm"
    archive_model(tmp_path / "c.safetensors", folder, archive_format="directory")
    # Every file is whole and sealed, but the weights are not those that the golden scores were made with.
    weights = load_file(folder / "dense.safetensors")
    save_file({key: weight * 1.01 for key, weight in weights.items()}, folder / "dense.safetensors")
    seal_folder(folder)
    with (
        pytest.raises(
            ServingError, match=r"golden request \d+ of 16 \(alone\) gives 0\.\d+, but 0\.\d+ is expected"
        ),
        serving(tmp_path / "store", "dlrm=dlrm", run_dir=tmp_path / "run"),
    ):
        pass

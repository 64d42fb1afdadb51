from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.sharded_files import save_all

TESTS = Path(__file__).parents[2]


@pytest.fixture(
    scope="session",
    params=[pytest.param(1, id="1-rank"), pytest.param(2, id="2-ranks", marks=pytest.mark.multiprocess)],
)
def sharded(request, tmp_path_factory) -> tuple[Path, int]:
    """A folder with what `support.sharded_files` saves, and the number of ranks that saved it."""
    folder = tmp_path_factory.mktemp(f"ranks-{request.param}")
    if request.param == 1:
        save_all(folder)
        return folder, 1
    command = [
        sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--nproc-per-node", str(request.param),
        "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0",
        str(TESTS / "support" / "sharded_files.py"), str(folder),
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, request.param

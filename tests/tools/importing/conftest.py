from __future__ import annotations

from pathlib import Path

import pytest
from support.sharded_files import save_all

from dlrm_factory.tools.launch import launch


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
    launch(save_all, folder, processes=request.param)
    return folder, request.param

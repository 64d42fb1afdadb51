from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
import torch

from dlrm_factory.config import DLRMDeclaration, tiny

COLUMNS = ("click", "price", "age_days", "user_id", "item_id", "item_tags")


@pytest.fixture
def declaration() -> DLRMDeclaration:
    """price; age_days (default 30, log1p); user_id (hash of 1000); item_id, item_tags (index of 200, 50)."""
    return tiny()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small models on several threads are slow while other tests run beside."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def write_csv(tmp_path: Path) -> Callable[..., Path]:
    def write(*lines: str, name: str = "clicks.csv", header: str = ",".join(COLUMNS)) -> Path:
        path = tmp_path / name
        path.write_text("\n".join((header, *lines)) + "\n")
        return path

    return write


@pytest.fixture
def write_parquet(tmp_path: Path) -> Callable[..., Path]:
    """Writes 2 good rows, with the given columns in place of the good ones."""

    def write(name: str = "clicks.parquet", **columns: Any) -> Path:
        good = {
            "click": [0, 1],
            "price": [1.5, 2.5],
            "age_days": [1, 2],
            "user_id": ["u1", "u2"],
            "item_id": [3, 4],
            "item_tags": [[1, 2], [3]],
        }
        path = tmp_path / name
        pyarrow.parquet.write_table(pa.table(good | columns), path)
        return path

    return write

"""Pages of mapped files are given back; other memory is left alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.mapped_files import resident

from dlrm_factory.host.mapped_pages import MappedPages

SIZE = 1 << 20  # elements: 4 MiB


def mapped(path: Path, *, shared: bool) -> torch.Tensor:
    torch.arange(float(SIZE)).numpy().tofile(path)
    return torch.from_file(str(path), shared=shared, size=SIZE, dtype=torch.float32)


@pytest.mark.parametrize("shared", [False, True])
def test_pages_that_were_read_are_given_back(tmp_path: Path, shared: bool) -> None:
    path = tmp_path / "t"
    tensor = mapped(path, shared=shared)
    pages, total = MappedPages(tensor), float(tensor.double().sum())
    assert resident(path) >= 4 * SIZE
    pages.release(tensor[SIZE // 2 :])
    assert 2 * SIZE <= resident(path) <= 2 * SIZE + (128 << 10)
    pages.release(tensor)
    assert resident(path) == 0
    assert float(tensor.double().sum()) == total


def test_a_shared_mapping_keeps_what_was_written(tmp_path: Path) -> None:
    tensor = mapped(tmp_path / "t", shared=True)
    tensor[5] = -1
    MappedPages(tensor).release(tensor)
    assert tensor[:7].tolist() == [0, 1, 2, 3, 4, -1, 6]


@pytest.mark.parametrize("elements", [SIZE, 8 * SIZE])
def test_memory_of_the_process_is_left_alone(elements: int) -> None:
    tensor = torch.ones(elements)
    MappedPages(tensor).release(tensor)
    assert bool((tensor == 1).all())


def test_views_of_any_strides(tmp_path: Path) -> None:
    path = tmp_path / "t"
    rows = mapped(path, shared=False).view(1024, 1024)
    pages = MappedPages(rows)
    assert float(rows.sum()) > 0
    pages.release(rows.T[:1])  # a column lies in every row's pages
    assert resident(path) <= 128 << 10
    pages.release(rows[:0])
    assert torch.equal(rows[1, :3], torch.tensor([1024.0, 1025.0, 1026.0]))

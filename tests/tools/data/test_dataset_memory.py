"""Memory that rows may take: a share that does not change from run to run, within what is free."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from dlrm_factory.tools.data import dataset_builder
from dlrm_factory.tools.data.dataset_builder import memory_for_rows


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """1,000 bytes of memory, all free, and no container."""
    found = SimpleNamespace(total=1000, available=1000, limit=1000)
    monkeypatch.setattr(dataset_builder.psutil, "virtual_memory", lambda: found)
    monkeypatch.setattr(dataset_builder, "memory_limit", lambda: found.limit)
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    return found


def test_a_share_of_the_machine():
    assert memory_for_rows() == 300


def test_a_container_may_have_less(machine):
    machine.limit = 500
    assert memory_for_rows() == 150


def test_one_process_keeps_within_what_is_free(machine):
    machine.available = 100
    assert memory_for_rows() == 80


def test_ranks_of_a_host_share_and_decide_alike(machine, monkeypatch):
    machine.available = 100
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert memory_for_rows() == 150

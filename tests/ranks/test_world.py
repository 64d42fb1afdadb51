"""Stores and interfaces of ranks, and their agreement on a plan."""

from __future__ import annotations

import os
import threading
from types import SimpleNamespace

import pytest
import torch
from support.hosts import listens_everywhere

from dlrm_factory.config import tiny
from dlrm_factory.errors import GroupError, PlanError, ServingError
from dlrm_factory.factory import DLRMFactory
from dlrm_factory.model.hardware import Hardware
from dlrm_factory.ranks import RankedScorer, loading
from dlrm_factory.ranks.world import connect_store, host_store_path, listen_store, use_interface

VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


def test_the_store_listens_on_its_address_alone() -> None:
    before = listens_everywhere(os.getpid())
    store = listen_store("127.0.0.2")
    connect_store("127.0.0.2", store.port).set("key", "value")
    assert store.get("key") == b"value"
    assert listens_everywhere(os.getpid()) == before


def test_ranks_of_one_launcher_share_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_RESTART_COUNT", raising=False)
    first = host_store_path(os.getpid())
    assert host_store_path(os.getpid()) == first
    assert host_store_path(os.getppid()) != first
    # torchrun that starts its ranks again starts with nothing in the file.
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert host_store_path(os.getpid()) != first


def test_the_interface_is_the_addresss(monkeypatch: pytest.MonkeyPatch) -> None:
    for address in (None, "127.0.0.1", "127.0.0.2"):
        for name in VARIABLES:
            monkeypatch.delenv(name, raising=False)
        use_interface(address)
        assert [os.environ[name] for name in VARIABLES] == ["lo", "=lo"]
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth7")
    use_interface(None)
    assert os.environ["GLOO_SOCKET_IFNAME"] == "eth7"
    with pytest.raises(
        ServingError, match=r"no network interface of this machine has the address 192\.0\.2\.7"
    ):
        use_interface("192.0.2.7")


def test_no_rank_loads_that_plans_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = DLRMFactory(tiny()).plan(hardware=Hardware(world_size=3, memory=1 << 30))
    group = SimpleNamespace(size=3, data=None)

    def gather(found: list[torch.Tensor], own: torch.Tensor, *, group: object) -> None:
        for each in found:
            each.copy_(own)

    monkeypatch.setattr(loading.dist, "all_gather", gather)
    loading._check_plan(plan, group)

    def gather_another(found: list[torch.Tensor], own: torch.Tensor, *, group: object) -> None:
        gather(found, own, group=group)
        found[2][0] ^= 1

    monkeypatch.setattr(loading.dist, "all_gather", gather_another)
    with pytest.raises(PlanError, match="ranks 2 of 3 place the tables otherwise than the leader does"):
        loading._check_plan(plan, group)


def test_a_group_that_is_lost_elsewhere_answers_the_batch_in_hand_first() -> None:
    losses: list[GroupError] = []
    ranked = object.__new__(RankedScorer)
    ranked._lock, ranked._lost, ranked._on_loss = threading.Lock(), None, losses.append
    lost = GroupError("host 1 is gone")
    with ranked._lock:
        other = threading.Thread(target=ranked.lose_between, args=(lost,), kwargs={"within_s": 10})
        other.start()
        other.join(0.1)
        assert losses == []
    other.join(10)
    assert losses == [lost]
    # A batch that does not end is not waited for, and a group is lost once.
    with ranked._lock:
        ranked.lose_between(GroupError("again"), within_s=0.05)
    assert losses == [lost]
    with pytest.raises(GroupError, match="host 1 is gone"), ranked._in_group():
        pass

"""Capacity of hosts that serve a plan, from times and bytes of its parts, and the number of hosts for a rate."""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from dlrm_factory.config.declaration import DLRMDeclaration
from dlrm_factory.config.sizes import format_bytes
from dlrm_factory.errors import PlanError
from dlrm_factory.factory import DLRMFactory
from dlrm_factory.model.hardware import Hardware
from dlrm_factory.model.model import make_model
from dlrm_factory.model.plan import TablePlan
from dlrm_factory.ranks.layout import layout_of
from dlrm_factory.ranks.traffic import Traffic, plan_traffic

__all__ = [
    "FORMULA",
    "MAX_HOSTS",
    "Capacity",
    "ServingCosts",
    "ServingHosts",
    "capacity_of",
    "hosts_for",
    "parse_network",
    "traffic_of",
]

MAX_HOSTS = 256
_NETWORK = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([MG])bit(?:/s)?\s*", re.IGNORECASE)

FORMULA = """\
core time = (request_us + flops / (1000 gflops) + 2 bytes copy_ns / 1000) / hosts + lookups lookup_ns / 1000
samples/s = the least of 10^6 cores / core time, and network / (8 bytes_out)
batch     = exchange_us + B (request_us + (flops / (1000 gflops) + 2 bytes copy_ns / 1000) / ranks
            + lookups lookup_ns / 1000) + B 8 bytes_out / network
groups    = samples/s x batch / B, rounded up
p99       = batch + batch / (groups (1 - load)) x ln(100 C), if 100 C is over 1

core time, batch in microseconds, of the busiest host or rank. bytes: that cross between ranks, a sample; bytes_out:
that the busiest host sends. lookups: rows that the busiest host, or rank, reads. B: samples in a batch. load: rate
over samples/s. C: Erlang's C, the share of batches that wait where `groups` serve, whose times are exponential."""


@dataclass(frozen=True, kw_only=True)
class ServingCosts:
    """Times of the parts on one core; the defaults were measured on an AMD EPYC with AVX-512 bf16.

    Fields:
        request_us: reading and answering a sample, microseconds.
        gflops: of the dense parts, 10^9 floating-point operations a second.
        lookup_ns: reading a row of a large table, nanoseconds.
        copy_ns: sending, or receiving, a byte, nanoseconds.
        exchange_us: a batch's messages between ranks, but for their bytes, microseconds.
    """

    request_us: float = 8.0
    gflops: float = 290.0
    lookup_ns: float = 45.0
    copy_ns: float = 0.65
    exchange_us: float = 1000.0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if not 0 < getattr(self, field.name) < math.inf:
                raise PlanError(
                    f"cost {field.name} is {getattr(self, field.name)}; it must be positive and finite"
                )


@dataclass(frozen=True, kw_only=True)
class ServingHosts:
    """One of the hosts: its cores, and bits a second of its network, each way. ``batch``: samples scored at once."""

    cores: int = 16
    network: float = 25e9
    batch: int = 512

    def __post_init__(self) -> None:
        for name in ("cores", "network", "batch"):
            if not 0 < getattr(self, name) < math.inf:
                raise PlanError(f"{name} of a host is {getattr(self, name)}; it must be positive and finite")


@dataclass(frozen=True, kw_only=True)
class Capacity:
    """Samples a second that the hosts of a plan can serve.

    Fields:
        hosts: their number. Each leads as many groups as any other.
        bytes: the most that a host has of the tables.
        parts: core microseconds a sample on the busiest host, by part: request, dense, lookup, exchange.
        bytes_out: a sample, that the busiest host sends to others.
        cores_limit, network_limit: samples/s that either allows.
        limit: what ends it: ``network``, or the largest part.
        batch_ms: time of a batch.
        groups: that must serve at once for the limit to be reached.
    """

    hosts: int
    bytes: int
    parts: dict[str, float]
    bytes_out: float
    cores_limit: float
    network_limit: float
    batch_ms: float
    groups: int

    @property
    def samples_per_s(self) -> float:
        return min(self.cores_limit, self.network_limit)

    @property
    def limit(self) -> str:
        if self.network_limit < self.cores_limit:
            return "network"
        return max(self.parts, key=lambda part: self.parts[part])

    def p99_ms(self, rate: float) -> float:
        """99th percentile of a batch's time at ``rate`` samples/s; infinite where that is more than the hosts serve."""
        load = rate / self.samples_per_s
        if load >= 1:
            return math.inf
        waiting = _erlang_c(self.groups, load)
        wait = self.batch_ms / (self.groups * (1 - load)) * math.log(max(1.0, 100 * waiting))
        return self.batch_ms + wait

    def to_dict(self, rate: float | None = None) -> dict[str, Any]:
        """Plain data, for JSON."""
        found = dataclasses.asdict(self) | {"samples_per_s": self.samples_per_s, "limit": self.limit}
        if rate is not None:
            found |= {"rate": rate, "load": rate / self.samples_per_s}
            found["p99_ms"] = self.p99_ms(rate) if rate < self.samples_per_s else None
        return found


def parse_network(text: str) -> float:
    """``"25Gbit"`` → 25e9 bits a second. PlanError for other text."""
    match = _NETWORK.fullmatch(text)
    if not match or not float(match.group(1)):
        raise PlanError(f'"{text}" is not the speed of a network; write a number and a unit, e.g. 25Gbit')
    return float(match.group(1)) * {"M": 1e6, "G": 1e9}[match.group(2).upper()]


def traffic_of(plan: TablePlan, declaration: DLRMDeclaration) -> dict[str, Traffic]:
    """Bytes of a sample that cross between ``ranks`` and between ``hosts`` in large batches.

    Vectors count as bfloat16 unless ``serving.precision`` is fp32.
    """
    factors = [feature.pooling_factor or 1.0 for feature in declaration.sparse_features]
    pooled_bytes, mean = 4 if declaration.serving.precision == "fp32" else 2, sum(factors) / len(factors)
    return {
        "ranks": plan_traffic(plan, declaration, pooled_bytes=pooled_bytes, ids_a_bag=mean, between="ranks"),
        "hosts": plan_traffic(plan, declaration, pooled_bytes=pooled_bytes, ids_a_bag=mean, between="hosts"),
    }


def capacity_of(
    plan: TablePlan,
    declaration: DLRMDeclaration,
    *,
    host: ServingHosts | None = None,
    costs: ServingCosts | None = None,
) -> Capacity:
    """Capacity of the hosts of ``plan`` by `FORMULA`. ``declaration``: the plan's."""
    host, costs = host or ServingHosts(), costs or ServingCosts()
    hosts, ranks = plan.hardware.hosts, plan.hardware.world_size
    traffic = traffic_of(plan, declaration)
    dense = _dense_flops(declaration) / (1000 * costs.gflops)
    copies = 2 * traffic["ranks"].total * costs.copy_ns / 1000
    by_rank = plan.rank_lookups()
    parts = {
        "request": costs.request_us / hosts,
        "dense": dense / hosts,
        "lookup": max(_by_host(plan, by_rank)) * costs.lookup_ns / 1000,
        "exchange": copies / hosts,
    }
    bytes_out = _busiest_sender(plan, declaration, traffic["hosts"])
    cores_limit = 1e6 * host.cores / sum(parts.values())
    network_limit = host.network / (8 * bytes_out) if bytes_out else math.inf
    a_sample = costs.request_us + (dense + copies) / ranks + max(by_rank) * costs.lookup_ns / 1000
    on_the_wire = 1e6 * 8 * bytes_out / host.network
    batch_us = (costs.exchange_us if ranks > 1 else 0) + host.batch * (a_sample + on_the_wire)
    return Capacity(
        hosts=hosts,
        bytes=max(plan.host_bytes()),
        parts=parts,
        bytes_out=bytes_out,
        cores_limit=cores_limit,
        network_limit=network_limit,
        batch_ms=batch_us / 1000,
        groups=math.ceil(min(cores_limit, network_limit) * batch_us / 1e6 / host.batch),
    )


def hosts_for(
    declaration: DLRMDeclaration,
    rate: float,
    *,
    memory: int,
    ranks: int = 1,
    load: float = 0.7,
    host: ServingHosts | None = None,
    costs: ServingCosts | None = None,
) -> tuple[TablePlan, Capacity, str]:
    """The fewest hosts that serve ``rate`` samples/s: their plan, their capacity, and what fewer lack.

    That is ``memory`` where fewer cannot hold the tables, or a `Capacity.limit`, or "" where there are none fewer.

    Args:
        memory: bytes a rank has for tables.
        ranks: of a group, on each host.
        load: the most that ``rate`` may be of the capacity.

    PlanError if `MAX_HOSTS` are too few.
    """

    def attempt(hosts: int) -> tuple[TablePlan, Capacity] | None:
        hardware = Hardware(world_size=hosts * ranks, hosts=hosts, memory=memory)
        try:
            plan = DLRMFactory(declaration).plan(hardware=hardware)
        except PlanError:
            if hosts >= MAX_HOSTS:
                raise
            return None
        return plan, capacity_of(plan, declaration, host=host, costs=costs)

    too_few, lacking, hosts, best = 0, "", 1, None
    while best is None or hosts - too_few > 1:
        tried = hosts if best is None else (too_few + hosts) // 2
        found = attempt(tried)
        if found is not None and found[1].samples_per_s * load >= rate:
            hosts, best = tried, found
            continue
        too_few, lacking = tried, "memory" if found is None else found[1].limit
        if best is None:
            if found is not None and hosts >= MAX_HOSTS:
                raise PlanError(_too_few(*found, rate))
            hosts = min(MAX_HOSTS, 2 * hosts)
    return *best, lacking


def _too_few(plan: TablePlan, capacity: Capacity, rate: float) -> str:
    split = [table.name for table in plan.tables if table.sharding == "row_wise"]
    why = (
        f"; {len(split)} tables are split by rows, so that every rank sends a vector for every sample: give ranks "
        "more memory, or split these tables by columns (sharding: column_wise), of which each is sent once"
        if split
        else ""
    )
    return (
        f"{MAX_HOSTS} hosts serve {capacity.samples_per_s:,.0f} samples/s, not {rate:,.0f}; "
        f"the limit is {capacity.limit} ({format_bytes(capacity.bytes_out)} a sample leave a host){why}"
    )


def _by_host(plan: TablePlan, by_rank: list[float]) -> list[float]:
    local = plan.hardware.local_world_size
    return [sum(by_rank[first : first + local]) for first in range(0, len(by_rank), local)]


def _busiest_sender(plan: TablePlan, declaration: DLRMDeclaration, between_hosts: Traffic) -> float:
    """Bytes a sample that the host with most vectors sends; all else is sent by the hosts in turn, as they lead."""
    hosts = plan.hardware.hosts
    columns = _by_host(plan, [float(rank.columns) for rank in layout_of(plan, declaration).ranks])
    share = max(columns) / sum(columns) if sum(columns) else 1 / hosts
    return (between_hosts.total - between_hosts.pooled) / hosts + between_hosts.pooled * share


def _dense_flops(declaration: DLRMDeclaration) -> int:
    """Floating-point operations of the matrix products of one sample."""
    model = make_model(declaration, dense_device="meta")
    numbers = torch.empty(1, len(declaration.dense_features), device="meta")
    pooled = torch.empty(1, len(declaration.sparse_features), declaration.embedding_dim, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.over_arch(model.inter_arch(model.dense_arch(numbers), pooled))
    return int(counter.get_total_flops())


def _erlang_c(servers: int, load: float) -> float:
    """Share of arrivals that wait where ``servers`` serve, each busy for ``load`` of its time."""
    offered = servers * load
    blocked = 1.0  # Erlang's B, by its recursion
    for n in range(1, servers + 1):
        blocked = offered * blocked / (n + offered * blocked)
    return blocked / (1 - load * (1 - blocked))

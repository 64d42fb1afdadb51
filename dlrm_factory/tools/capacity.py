"""Capacity of hosts that serve a plan, from times and bytes of its parts, and the number of hosts for a rate."""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from dlrm_factory.compiled import pooled_dtype
from dlrm_factory.config.declaration import DLRMDeclaration
from dlrm_factory.errors import PlanError
from dlrm_factory.factory import DLRMFactory
from dlrm_factory.model.dtypes import row_bytes
from dlrm_factory.model.hardware import Hardware
from dlrm_factory.model.model import make_model
from dlrm_factory.model.plan import TablePlan
from dlrm_factory.model.plan_advice import advice_when_nothing_fits
from dlrm_factory.ranks.layout import layout_of
from dlrm_factory.ranks.traffic import Traffic, plan_traffic, sequence_numbers

__all__ = [
    "FORMULA",
    "MAX_HOSTS",
    "Capacity",
    "Deployment",
    "ServingCosts",
    "ServingHosts",
    "best_use",
    "capacity_of",
    "hosts_for",
    "parse_network",
    "traffic_of",
]

MAX_HOSTS = 256
_NETWORK = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([MG])bit(?:/s)?\s*", re.IGNORECASE)

FORMULA = """\
core time = (request_us + flops / (1000 gflops) + 2 bytes copy_ns / 1000 + messages message_us / B) / hosts
            + lookups lookup_ns / 1000
samples/s = the least of 10^6 cores / core time, and network / (8 bytes_out)
batch     = B (request_us + (flops / (1000 gflops) + 2 bytes copy_ns / 1000) / ranks + lookups lookup_ns / 1000)
            + 4 (ranks - 1) message_us + B 8 bytes_out / network
groups    = samples/s x batch / B, rounded up
p99       = batch + batch / (groups (1 - load)) x ln(100 C), if 100 C is over 1

core time, batch in microseconds, of the busiest host or rank. bytes: that cross between ranks, a sample; bytes_out:
that the busiest host sends. messages: that ranks send and receive for a batch, 2 (ranks - 1) (ranks + 2).
lookups: rows that the busiest host, or rank, reads. B: samples in a batch. load: rate over samples/s. C: Erlang's C,
the share of batches that wait where `groups` serve, whose times are exponential."""


@dataclass(frozen=True, kw_only=True)
class ServingCosts:
    """Times of the parts on one core; the defaults were measured on an AMD EPYC with AVX-512 bf16.

    Fields:
        request_us: reading and answering a sample, microseconds.
        gflops: of the dense parts, 10^9 floating-point operations a second.
        lookup_ns: reading a row of a large table, nanoseconds.
        copy_ns: sending, or receiving, a byte, nanoseconds.
        message_us: sending, or receiving, a message between ranks, but for its bytes, microseconds.
    """

    request_us: float = 8.0
    gflops: float = 290.0
    lookup_ns: float = 45.0
    copy_ns: float = 0.4
    message_us: float = 175.0

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


def parse_network(text: str) -> float:
    """``"25Gbit"`` → 25e9 bits a second. PlanError for other text."""
    match = _NETWORK.fullmatch(text)
    if not match or not float(match.group(1)):
        raise PlanError(f'"{text}" is not the speed of a network; write a number and a unit, e.g. 25Gbit')
    return float(match.group(1)) * {"M": 1e6, "G": 1e9}[match.group(2).upper()]


def traffic_of(plan: TablePlan, declaration: DLRMDeclaration) -> dict[str, Traffic]:
    """Bytes of a sample that cross between ``ranks`` and between ``hosts`` in large batches.

    Vectors count as bfloat16 where the dense parts may take it, unless ``serving.precision`` is fp32.
    """
    ids = _ids_a_bag(declaration)
    size = pooled_dtype(declaration, "fp32" if declaration.serving.precision == "fp32" else "bf16").itemsize
    return {
        "ranks": plan_traffic(plan, declaration, number_bytes=size, ids_a_bag=ids, between="ranks"),
        "hosts": plan_traffic(plan, declaration, number_bytes=size, ids_a_bag=ids, between="hosts"),
    }


def _ids_a_bag(declaration: DLRMDeclaration) -> list[float]:
    return [feature.pooling_factor or 1.0 for feature in declaration.sparse_features]


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
    # Of each rank with each other: vectors both ways; of each with the leader: ids there, logits back.
    messages = 2 * ranks * (ranks - 1) + 4 * (ranks - 1)
    by_rank = plan.rank_lookups()
    parts = {
        "request": costs.request_us / hosts,
        "dense": dense / hosts,
        "lookup": max(_by_host(plan, by_rank)) * costs.lookup_ns / 1000,
        "exchange": (copies + messages * costs.message_us / host.batch) / hosts,
    }
    bytes_out = _busiest_sender(plan, declaration, traffic["hosts"])
    cores_limit = 1e6 * host.cores / sum(parts.values())
    network_limit = host.network / (8 * bytes_out) if bytes_out else math.inf
    a_sample = costs.request_us + (dense + copies) / ranks + max(by_rank) * costs.lookup_ns / 1000
    on_the_wire = 1e6 * 8 * bytes_out / host.network
    batch_us = 4 * (ranks - 1) * costs.message_us + host.batch * (a_sample + on_the_wire)
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


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """Hosts in ``sets``, each of which holds all tables by ``plan`` and has ``capacity``.

    ``lacking``: what fewer hosts lack: ``memory`` for the tables, or the capacity's limit; "" if nothing is known.
    """

    sets: int
    plan: TablePlan
    capacity: Capacity
    lacking: str = ""

    @property
    def hosts(self) -> int:
        return self.sets * self.capacity.hosts

    @property
    def samples_per_s(self) -> float:
        return self.sets * self.capacity.samples_per_s

    def p99_ms(self, rate: float) -> float:
        """`Capacity.p99_ms` at ``rate`` samples/s of all sets together."""
        return self.capacity.p99_ms(rate / self.sets)

    def to_dict(self, rate: float) -> dict[str, Any]:
        """Plain data, for JSON; null where there is no bound."""
        found = dataclasses.asdict(self.capacity)
        found |= {"samples_per_s": self.capacity.samples_per_s, "limit": self.capacity.limit}
        found |= {
            "sets": self.sets,
            "fewer_lack": self.lacking or None,
            "rate": rate,
            "load": rate / self.samples_per_s,
            "p99_ms": self.p99_ms(rate),
        }
        return {name: None if value == math.inf else value for name, value in found.items()}


def hosts_for(
    declaration: DLRMDeclaration,
    rate: float,
    *,
    memory: int,
    ranks: int = 1,
    load: float = 0.7,
    host: ServingHosts | None = None,
    costs: ServingCosts | None = None,
) -> Deployment:
    """The fewest hosts that serve ``rate`` samples/s, in as many sets as are needed.

    Args:
        memory: bytes a rank has for tables.
        ranks: of a group, on each host.
        load: the most that ``rate`` may be of what the hosts can serve.

    PlanError if `MAX_HOSTS` cannot hold the tables.
    """
    sets = _possible_sets(declaration, MAX_HOSTS, memory, ranks, host, costs)
    found = [
        Deployment(sets=math.ceil(rate / load / capacity.samples_per_s), plan=plan, capacity=capacity)
        for plan, capacity in sets
    ]
    best = min(found, key=lambda each: (each.hosts, -each.samples_per_s))
    if best.hosts == 1:
        return best
    lacking = "memory" if best.hosts == sets[0][1].hosts else best.capacity.limit
    return dataclasses.replace(best, lacking=lacking)


def best_use(
    declaration: DLRMDeclaration,
    hosts: int,
    *,
    memory: int,
    ranks: int = 1,
    host: ServingHosts | None = None,
    costs: ServingCosts | None = None,
) -> Deployment:
    """The sets of at most ``hosts`` hosts that serve most samples/s; arguments as of `hosts_for`.

    PlanError if they cannot hold the tables.
    """
    found = [
        Deployment(sets=hosts // capacity.hosts, plan=plan, capacity=capacity)
        for plan, capacity in _possible_sets(declaration, hosts, memory, ranks, host, costs)
    ]
    return max(found, key=lambda each: each.samples_per_s)


def _possible_sets(
    declaration: DLRMDeclaration,
    most: int,
    memory: int,
    ranks: int,
    host: ServingHosts | None,
    costs: ServingCosts | None,
) -> list[tuple[TablePlan, Capacity]]:
    """Sets of up to ``most`` hosts: the smallest that holds the tables, and some larger ones."""
    total = sum(
        table.num_embeddings * row_bytes(table.dtype, table.embedding_dim) for table in declaration.tables
    )
    smallest = max(1, math.ceil(total / (memory * ranks)))
    if smallest > most:
        hardware = Hardware(world_size=most * ranks, hosts=most, memory=memory)
        raise PlanError(advice_when_nothing_fits(declaration, hardware, mode="quantized"))
    plans: dict[int, TablePlan] = {}
    while 2 * smallest <= most and not plans:  # else there is one set of them all
        try:
            plans[smallest] = _plan_of(declaration, smallest, memory, ranks)
        except PlanError:
            smallest += max(1, smallest // 16)
    larger = {smallest + 1, 2 * smallest, 4 * smallest} if plans else {most}
    if most < 4 * smallest:
        larger.add(most)
    for size in larger:
        if size <= most and size not in plans:
            plans[size] = _plan_of(declaration, size, memory, ranks)
    return [
        (plan, capacity_of(plan, declaration, host=host, costs=costs)) for _, plan in sorted(plans.items())
    ]


def _plan_of(declaration: DLRMDeclaration, hosts: int, memory: int, ranks: int) -> TablePlan:
    hardware = Hardware(world_size=hosts * ranks, hosts=hosts, memory=memory)
    return DLRMFactory(declaration).plan(hardware=hardware)


def _by_host(plan: TablePlan, by_rank: list[float]) -> list[float]:
    local = plan.hardware.local_world_size
    return [sum(by_rank[first : first + local]) for first in range(0, len(by_rank), local)]


def _busiest_sender(plan: TablePlan, declaration: DLRMDeclaration, between_hosts: Traffic) -> float:
    """Bytes a sample that the host with most vectors sends; all else is sent by the hosts in turn, as they lead."""
    hosts = plan.hardware.hosts
    ids, ranks = _ids_a_bag(declaration), layout_of(plan, declaration).ranks
    numbers = _by_host(plan, [rank.columns + sequence_numbers(rank, ids, declaration) for rank in ranks])
    share = max(numbers) / sum(numbers) if sum(numbers) else 1 / hosts
    return (between_hosts.total - between_hosts.vectors) / hosts + between_hosts.vectors * share


def _dense_flops(declaration: DLRMDeclaration) -> int:
    """Floating-point operations of the matrix products of one sample."""
    model = make_model(declaration, dense_device="meta")
    numbers = torch.empty(1, len(declaration.dense_features), device="meta")
    pooled = torch.empty(1, declaration.pooled_columns, device="meta")
    sequences, lengths = [], []
    for feature in declaration.sequence_features:
        dim, ids = declaration.table(feature.table).embedding_dim, round(feature.pooling_factor or 1)
        sequences.append(torch.empty(1, max(1, ids), dim, device="meta"))
        lengths.append(torch.full((1,), ids, device="meta"))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.net(numbers, pooled, sequences, lengths)
    return int(counter.get_total_flops())


def _erlang_c(servers: int, load: float) -> float:
    """Share of arrivals that wait where ``servers`` serve, each busy for ``load`` of its time."""
    offered = servers * load
    blocked = 1.0  # Erlang's B, by its recursion
    for n in range(1, servers + 1):
        blocked = offered * blocked / (n + offered * blocked)
    return blocked / (1 - load * (1 - blocked))

"""Capacity of hosts by hand, and the table of the documentation."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import msgspec
import pytest
from support.depth import DEPTH
from support.sharding import DTYPES, declared
from typer.testing import CliRunner

from dlrm_factory.config import DLRMDeclaration, SparseFeature, Table, criteo, tiny
from dlrm_factory.errors import PlanError
from dlrm_factory.factory import DLRMFactory
from dlrm_factory.model.hardware import Hardware
from dlrm_factory.tools import capacity
from dlrm_factory.tools.capacity import (
    FORMULA,
    ServingCosts,
    ServingHosts,
    best_use,
    capacity_of,
    hosts_for,
    parse_network,
    traffic_of,
)
from dlrm_factory.tools.cli.main import app

DOCUMENT = (Path(__file__).parents[2] / "docs" / "scale-out.md").read_text(encoding="utf-8")
COSTS = ServingCosts(request_us=10, gflops=0.001, lookup_ns=1000, copy_ns=100, message_us=50)
HOST = ServingHosts(cores=4, network=1e9, batch=100)
MEMORY = 218_000_000_000  # 85 % of 256 GB


def two_hosts(declaration: DLRMDeclaration):
    return DLRMFactory(declaration).plan(hardware=Hardware(world_size=2, hosts=2, memory=10**9))


def test_by_hand():
    declaration = declared("table_wise", "sum", DTYPES[0])
    plan = two_hosts(declaration)
    traffic = traffic_of(plan, declaration)["hosts"]
    found = capacity_of(plan, declaration, host=HOST, costs=COSTS)
    # Of every product of a row and a column two operations: 2-16-8, 4 vectors of 8 with one another, 14-16-1.
    flops = 2 * (2 * 16 + 16 * 8 + 4 * 4 * 8 + 14 * 16 + 16)
    copies = 2 * traffic.total * 0.1
    # Vectors there and back, each sent and received; ids there and logits back, too.
    messages = (4 + 4) * 50 / 100
    assert found.parts == pytest.approx(
        {"request": 5, "dense": flops / 2, "lookup": 2 * 1, "exchange": (copies + messages) / 2}
    )
    core_time = sum(found.parts.values())
    assert found.cores_limit == pytest.approx(4e6 / core_time)
    # One host holds two tables of three; everything else is sent by both in turn.
    out = (traffic.total - traffic.pooled) / 2 + traffic.pooled * 2 / 3
    assert found.bytes_out == pytest.approx(out)
    assert found.network_limit == pytest.approx(1e9 / 8 / out)
    assert found.limit == "dense"
    batch = 4 * 50 + 100 * (10 + (flops + copies) / 2 + 2) + 100 * out * 8e-3
    assert found.batch_ms == pytest.approx(batch / 1000)
    assert found.groups == math.ceil(found.samples_per_s * batch / 1e6 / 100)


def test_each_limit_is_named():
    declaration = declared("table_wise", "sum", DTYPES[0])
    plan = two_hosts(declaration)

    def limit(network: float = 1e12, **costs: float) -> str:
        cheap = dict.fromkeys(("request_us", "lookup_ns", "copy_ns", "message_us"), 1e-6) | {"gflops": 1e6}
        host = ServingHosts(network=network)
        return capacity_of(plan, declaration, host=host, costs=ServingCosts(**{**cheap, **costs})).limit

    assert limit(request_us=10) == "request"
    assert limit(gflops=0.01) == "dense"
    assert limit(lookup_ns=1e4) == "lookup"
    assert limit(copy_ns=1e4) == "exchange"
    assert limit(message_us=1e4) == "exchange"
    assert limit(network=1e3) == "network"


def test_the_99th_percentile_grows_with_the_load():
    declaration = declared("table_wise", "sum", DTYPES[0])
    served = capacity_of(two_hosts(declaration), declaration, host=HOST, costs=COSTS)
    most = served.samples_per_s
    found = [served.p99_ms(share * most) for share in (0.01, 0.5, 0.9, 0.99, 1.0)]
    assert found[0] == served.batch_ms
    assert found == sorted(found)
    assert found[-2] > 5 * served.batch_ms
    assert found[-1] == math.inf
    one = msgspec.structs.replace(declaration)
    # M/M/1: 70 % wait, and the 99th percentile of their wait is ln(70) / 0.3 services.
    alone = capacity_of(
        DLRMFactory(one).plan(hardware=Hardware(memory=10**9)), one, host=ServingHosts(cores=1), costs=COSTS
    )
    assert alone.groups == 1
    waited = alone.p99_ms(0.7 * alone.samples_per_s) - alone.batch_ms
    assert waited == pytest.approx(alone.batch_ms / 0.3 * math.log(70))


def test_the_fewest_hosts():
    declaration = criteo()

    def found(rate: float, memory: int = MEMORY) -> tuple[int, int, str]:
        deployment = hosts_for(declaration, rate, memory=memory)
        assert deployment.hosts == deployment.sets * deployment.plan.hardware.hosts
        assert max(deployment.plan.rank_bytes()) <= memory
        assert 0.7 * deployment.samples_per_s >= rate
        return deployment.sets, deployment.capacity.hosts, deployment.lacking

    # 12.1 GB: a host that has room for all needs no other, and a rate needs as many of them as it takes.
    assert found(1000) == (1, 1, "")
    alone = hosts_for(declaration, 1000, memory=MEMORY).samples_per_s
    assert found(3 * 0.69 * alone) == (3, 1, "request")
    assert found(1000, memory=4_000_000_000) == (1, 4, "memory")
    sets, size, lacking = found(5_000_000, memory=7_000_000_000)
    assert sets > 1
    assert size >= 2
    assert lacking in ("request", "exchange")
    with pytest.raises(PlanError, match="the tables do not fit"):
        hosts_for(criteo(), 1000, memory=40_000_000)


def test_the_best_use_of_hosts():
    alone = best_use(criteo(), 8, memory=MEMORY)
    assert (alone.sets, alone.capacity.hosts) == (8, 1)
    shared = best_use(criteo(), 9, memory=4_000_000_000)
    assert (shared.sets, shared.capacity.hosts) == (2, 4)
    assert shared.samples_per_s == 2 * shared.capacity.samples_per_s
    rate = 0.8 * shared.samples_per_s
    assert shared.p99_ms(rate) == shared.capacity.p99_ms(rate / 2)
    with pytest.raises(PlanError, match="the tables do not fit"):
        best_use(criteo(), 2, memory=4_000_000_000)


@pytest.mark.parametrize(
    ("text", "bits"), [("25Gbit", 25e9), ("100 gbit/s", 100e9), ("2.5Gbit", 2.5e9), ("100Mbit", 1e8)]
)
def test_network_speeds(text, bits):
    assert parse_network(text) == bits


@pytest.mark.parametrize("text", ["25", "25GB", "0Gbit", "fast"])
def test_other_texts_are_no_speeds(text):
    with pytest.raises(PlanError, match="is not the speed of a network"):
        parse_network(text)


def test_values_are_positive():
    with pytest.raises(PlanError, match="cost lookup_ns is -1"):
        ServingCosts(lookup_ns=-1)
    with pytest.raises(PlanError, match="cores of a host is 0"):
        ServingHosts(cores=0)


def test_vectors_count_as_the_dense_parts_take_them():
    narrow = tiny()
    wide = msgspec.structs.replace(narrow, serving=msgspec.structs.replace(narrow.serving, precision="fp32"))
    wide, narrow = (
        msgspec.structs.replace(d, sharding=msgspec.structs.replace(d.sharding, replicate_below=0))
        for d in (wide, narrow)
    )
    assert (
        traffic_of(two_hosts(wide), wide)["ranks"].pooled
        == 2 * traffic_of(two_hosts(narrow), narrow)["ranks"].pooled
    )


class TestCommand:
    def run(self, *arguments):
        return CliRunner().invoke(app, ["plan", *map(str, arguments)])

    def test_the_hosts_of_a_rate(self):
        done = self.run("demo", "--traffic", 100000, "--memory", "10GB")
        assert done.exit_code == 0, done.output
        assert "1 host serves" in done.stdout
        assert FORMULA in done.stdout
        assert "with request_us 8" in done.stdout

    def test_json(self):
        done = self.run(
            "criteo", "--hosts", 2, "--world-size", 4, "--memory", "9GB", "--traffic", 1000, "--network", "100Gbit",
            "--cores", 8, "--batch", 64, "--cost", "lookup_ns=100", "--cost", "gflops=500", "--json",
        )  # fmt: skip
        assert done.exit_code == 0, done.output
        found = json.loads(done.stdout)
        served = found["capacity"]
        assert served["host"] == {"cores": 8, "network": 100e9, "batch": 64}
        assert (served["costs"]["lookup_ns"], served["costs"]["gflops"]) == (100, 500)
        assert served["parts"]["lookup"] == pytest.approx(13 * 0.1)
        assert served["hosts"] == 2
        assert (served["sets"], served["fewer_lack"]) == (1, None)
        assert served["p99_ms"] == pytest.approx(served["batch_ms"])
        traffic = found["traffic"]
        assert traffic["ranks"]["total"] > traffic["hosts"]["total"] > traffic["hosts"]["pooled"] > 0

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--cost", "lookupns=1"], 'there is no cost "lookupns"; did you mean "lookup_ns"'),
            (["--cost", "lookup_ns=slow"], '"slow" is not a number'),
            (["--training"], "--traffic is of serving"),
            (["--device", "cuda"], "--traffic knows the times of CPUs alone"),
        ],
    )
    def test_mistakes(self, arguments, message):
        done = self.run("demo", "--traffic", 1000, *arguments)
        assert isinstance(done.exception, PlanError)
        assert message in str(done.exception)


def of_size(table_bytes: float, sharding: str) -> DLRMDeclaration:
    """The documentation's model: Criteo's 20 small tables and 40 large ones, 128 columns in int8."""
    base = criteo()
    small = [msgspec.structs.replace(t, embedding_dim=128) for t in base.tables if t.num_embeddings < 460_000]
    rows = int(table_bytes / 40 / 136)
    large = [
        Table(name=f"large_{i}", num_embeddings=rows, embedding_dim=128, dtype="int8", sharding=sharding)
        for i in range(40)
    ]
    return msgspec.structs.replace(
        base,
        tables=[*small, *large],
        sparse_features=[SparseFeature(name=table.name[2:], table=table.name) for table in [*small, *large]],
        dense_arch_layer_sizes=[512, 256, 128],
    )


# The planner takes seconds for many hosts.
MANY = (64,) if DEPTH == "deep" else ()
HOSTS = (2, 8, *MANY)


def documented_rows() -> list[str]:
    rows = []
    for size, sharding in (("100GB", "auto"), ("1TB", "auto"), ("10TB", "auto"), ("10TB", "column_wise")):
        declaration = of_size(float(size[:-2]) * {"G": 1e9, "T": 1e12}[size[-2]], sharding)
        for hosts in HOSTS if sharding == "auto" else MANY:
            try:
                cells = [cell for network in (25e9, 100e9) for cell in used(declaration, hosts, network)]
            except PlanError:
                cells = ["do not fit", *[""] * 7]
            rows.append(f"| {size[:-2]} {size[-2:]}, {sharding} | {hosts} | {' | '.join(cells)} |")
    return rows


def used(declaration: DLRMDeclaration, hosts: int, network: float) -> list[str]:
    host = ServingHosts(cores=32, network=network, batch=2048)
    best = best_use(declaration, hosts, memory=MEMORY, host=host)
    return [
        f"{best.sets} of {best.capacity.hosts}",
        f"{best.samples_per_s / 1e6:.2f} M",
        best.capacity.limit,
        f"{best.p99_ms(0.7 * best.samples_per_s):.0f} ms",
    ]


def test_the_documented_table_is_what_the_function_gives(monkeypatch):
    plans, plan_of = {}, capacity._plan_of

    def planned_once(declaration, hosts, *others):
        # The planner takes seconds for 64 hosts, and no network or number of sets changes what it finds.
        key = (declaration.tables[-1], hosts)
        if key not in plans:
            plans[key] = plan_of(declaration, hosts, *others)
        return plans[key]

    monkeypatch.setattr(capacity, "_plan_of", planned_once)
    hosts = "|".join(map(str, HOSTS))
    documented = re.findall(
        rf"^\| \d+ [GT]B, (?:auto|column_wise) \| (?:{hosts}) \|.*$", DOCUMENT, flags=re.MULTILINE
    )
    assert len(documented) >= 6
    assert documented == documented_rows()


def test_the_documented_formula_is_the_one_that_is_printed():
    assert f"```text\n{FORMULA}\n```" in DOCUMENT

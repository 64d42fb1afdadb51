from __future__ import annotations

import json

import msgspec
import pytest
from support.sharding import DTYPES, declared
from typer.testing import CliRunner

from dlrm_factory.config import criteo, dump_declaration
from dlrm_factory.errors import PlanError
from dlrm_factory.factory import DLRMFactory
from dlrm_factory.model.hardware import Hardware, hardware_of
from dlrm_factory.tools.cli.main import app


def covered(table):
    """Copies of each cell of the table, as {(row, column): copies} corner sums."""
    return sum(shard.rows * shard.columns for shard in table.shards)


@pytest.mark.parametrize("mode", ["float", "quantized"])
@pytest.mark.parametrize("sharding", ["table_wise", "row_wise", "column_wise", "data_parallel", "auto"])
def test_every_cell_is_placed(sharding, mode):
    hardware = Hardware(device="cuda", world_size=4, hosts=2, memory=10**9)
    plan = DLRMFactory(declared(sharding, "sum", DTYPES[4])).plan(mode=mode, hardware=hardware)
    for table in plan.tables:
        copies = 4 if table.sharding == "data_parallel" else 1
        assert covered(table) == copies * table.num_embeddings * table.embedding_dim
        assert {shard.rank for shard in table.shards} <= set(range(4))
        if sharding != "auto":
            assert table.sharding == sharding
    assert sum(plan.rank_bytes()) == sum(table.bytes for table in plan.tables)


def test_bytes_by_hand():
    plan = DLRMFactory(declared("table_wise", "sum", ("int8", "fp16", "int4"))).plan(
        hardware=Hardware(device="cpu", world_size=1, memory=10**9)
    )
    # 8 columns: int8 4+8 bytes a row, fp16 16, int4 4+4.
    assert [table.bytes for table in plan.tables] == [1000 * 12, 200 * 16, 50 * 8]
    assert plan.rank_bytes() == [12_000 + 3_200 + 400]
    assert plan.balance() == 1.0


def replicating(declaration, below):
    return msgspec.structs.replace(
        declaration, sharding=msgspec.structs.replace(declaration.sharding, replicate_below=below)
    )


def test_criteo_in_int8_takes_12_1_gb():
    plan = DLRMFactory(replicating(criteo(), 0)).plan(
        hardware=Hardware(device="cpu", world_size=2, memory=7 * 10**9)
    )
    assert sum(plan.rank_bytes()) == sum(68 * table.num_embeddings for table in criteo().tables)
    assert round(sum(plan.rank_bytes()) / 1e9, 1) == 12.1
    assert max(plan.rank_bytes()) <= 7 * 10**9


def test_the_plan_keeps_within_the_memory_by_splitting_rows():
    # One table is larger than a rank: the planner has to split it.
    plan = DLRMFactory(criteo()).plan(hardware=Hardware(device="cpu", world_size=8, memory=2 * 10**9))
    assert max(plan.rank_bytes()) <= 2 * 10**9
    assert any(table.sharding == "row_wise" for table in plan.tables)


def shardings(plan):
    return {table.name: table.sharding for table in plan.tables}


class TestReplicas:
    def test_small_tables_are_on_every_rank(self):
        plan = DLRMFactory(criteo()).plan(hardware=Hardware(world_size=4, hosts=2, memory=5 * 10**9))
        for table in plan.tables:
            small = 68 * table.num_embeddings < 64_000_000
            assert (table.sharding == "data_parallel") == small
            assert len(table.shards) == (4 if small else 1)
        assert sum(kind == "data_parallel" for kind in shardings(plan).values()) == 20

    def test_not_where_it_is_declared_otherwise_nor_on_one_rank_nor_to_train(self):
        declaration = declared("auto", "sum", DTYPES[4])
        tables = [
            msgspec.structs.replace(declaration.tables[0], sharding="row_wise"),
            *declaration.tables[1:],
        ]
        declaration = msgspec.structs.replace(declaration, tables=tables)
        two, one = Hardware(world_size=2, memory=10**9), Hardware(world_size=1, memory=10**9)
        factory = DLRMFactory(declaration)
        assert list(shardings(factory.plan(hardware=two)).values()) == ["row_wise"] + ["data_parallel"] * 2
        assert "data_parallel" not in shardings(factory.plan(hardware=one)).values()
        assert "data_parallel" not in shardings(factory.plan(hardware=two, mode="float")).values()
        none = DLRMFactory(replicating(declaration, 0)).plan(hardware=two)
        assert "data_parallel" not in shardings(none).values()

    def test_smallest_first_as_far_as_the_memory_goes(self):
        # fp32 of 8 columns: 32,000, 6,400 and 1,600 bytes. Copies of the last two and half of the first: 24,000.
        declaration = replicating(declared("auto", "sum", DTYPES[0]), "1MB")
        found = {}
        for memory in (60_000, 39_000, 25_000, 21_000):
            plan = DLRMFactory(declaration).plan(hardware=Hardware(world_size=2, memory=memory))
            assert max(plan.rank_bytes()) <= memory
            found[memory] = [kind == "data_parallel" for kind in shardings(plan).values()]
        assert found == {
            60_000: [True, True, True],
            39_000: [False, True, True],
            25_000: [False, True, True],
            21_000: [False, False, True],
        }

    def test_replicas_on_one_host_are_mapped_once(self):
        declaration = replicating(declared("auto", "sum", DTYPES[0]), "1MB")
        plan = DLRMFactory(declaration).plan(hardware=Hardware(world_size=4, hosts=2, memory=10**9))
        assert plan.rank_bytes() == [40_000] * 4
        assert plan.host_bytes() == [40_000] * 2
        on_gpu = DLRMFactory(declaration).plan(
            hardware=Hardware(device="cuda", world_size=4, hosts=2, memory=10**9)
        )
        assert on_gpu.host_bytes() == [80_000] * 2


class TestBalance:
    def many(self, *, factors, rows):
        base = declared("auto", "sum", DTYPES[0])
        tables = [
            msgspec.structs.replace(base.tables[0], name=f"t{i}", num_embeddings=n)
            for i, n in enumerate(rows)
        ]
        features = [
            msgspec.structs.replace(base.sparse_features[0], name=f"f{i}", table=f"t{i}", pooling_factor=n)
            for i, n in enumerate(factors)
        ]
        return replicating(msgspec.structs.replace(base, tables=tables, sparse_features=features), 0)

    def test_by_bytes_and_by_lookups(self):
        # Balanced by either alone, the other would be 3 to 1.
        declaration = self.many(factors=[30, 10, 10, 30], rows=[1000, 3000, 1000, 3000])
        plan = DLRMFactory(declaration).plan(hardware=Hardware(world_size=2, memory=10**9))
        assert plan.rank_bytes() == [128_000, 128_000]
        assert plan.rank_lookups() == [40, 40]

    def test_equal_tables_go_to_all_hosts(self):
        plan = DLRMFactory(self.many(factors=[1, 1], rows=[1000, 1000])).plan(
            hardware=Hardware(world_size=4, hosts=2, memory=10**9)
        )
        assert {shard.rank for table in plan.tables for shard in table.shards} == {0, 2}

    def test_criteo(self):
        plan = DLRMFactory(criteo()).plan(hardware=Hardware(world_size=2, memory=9 * 10**9))
        assert plan.balance() < 1.05
        assert plan.rank_lookups() == [13, 13]

    def test_lookups_of_a_row_shard_and_of_replicas(self):
        declaration = self.many(factors=[6, 4, 2], rows=[1000, 1000, 1000])
        kinds = ("row_wise", "data_parallel", "column_wise")
        tables = [
            msgspec.structs.replace(table, sharding=kind)
            for table, kind in zip(declaration.tables, kinds, strict=True)
        ]
        plan = DLRMFactory(msgspec.structs.replace(declaration, tables=tables)).plan(
            hardware=Hardware(world_size=2, memory=10**9)
        )
        # Half of the rows, half of the samples, and half of each row.
        assert plan.rank_lookups() == [3 + 2 + 2, 3 + 2 + 2]

    def test_tables_are_not_split_where_a_rank_has_room(self):
        plan = DLRMFactory(criteo()).plan(hardware=Hardware(world_size=8, memory=2 * 10**9))
        split = {table.name for table in plan.tables if table.sharding == "row_wise"}
        assert {"t_C1", "t_C20", "t_C22"} <= split
        assert "t_C11" not in split

    def test_the_planner_says_nothing_of_replicas(self, caplog):
        DLRMFactory(criteo()).plan(hardware=Hardware(world_size=2, memory=9 * 10**9))
        assert [record for record in caplog.records if record.levelname == "WARNING"] == []


def test_what_does_not_fit_says_what_would():
    with pytest.raises(PlanError) as error:
        DLRMFactory(criteo()).plan(hardware=Hardware(device="cpu", world_size=2, memory=4 * 10**9))
    message = str(error.value)
    assert "t_C20: 3.3 GB" in message
    assert message.index("t_C20") < message.index("t_C1:") < message.index("t_C22")
    assert "dtype int4 for the tables: 6.4 GB in all" in message
    assert "at least 4 ranks of 4.0 GB" in message
    assert "of memory a rank" in message


def test_a_table_that_may_not_be_split_is_named():
    tables = [msgspec.structs.replace(table, sharding="table_wise") for table in criteo().tables]
    declaration = msgspec.structs.replace(criteo(), tables=tables)
    with pytest.raises(PlanError, match='sharding row_wise for table "t_C20"'):
        DLRMFactory(declaration).plan(hardware=Hardware(device="cpu", world_size=8, memory=3 * 10**9))


def test_the_advised_memory_is_enough():
    with pytest.raises(PlanError, match=r"about ([0-9.]+) GB") as error:
        DLRMFactory(criteo()).plan(hardware=Hardware(device="cpu", world_size=2, memory=4 * 10**9))
    advised = float(str(error.value).rsplit("about ", 1)[1].split()[0]) * 1e9
    DLRMFactory(criteo()).plan(hardware=Hardware(device="cpu", world_size=2, memory=int(advised)))


def test_hosts_divide_the_world():
    with pytest.raises(PlanError, match="3 hosts cannot share 8 ranks"):
        Hardware(device="cpu", world_size=8, hosts=3, memory=1)
    assert Hardware(world_size=8, hosts=2, memory=1).local_world_size == 4


def test_declared_memory_is_taken():
    declaration = criteo()
    options = msgspec.structs.replace(declaration.sharding, memory="24GiB", world_size=2)
    assert hardware_of(options).memory == 24 * 2**30


class TestCommand:
    def run(self, *arguments):
        return CliRunner().invoke(app, ["plan", *map(str, arguments)])

    def test_json(self, tmp_path):
        config = tmp_path / "c.yaml"
        config.write_text(dump_declaration(declared("row_wise", "sum", DTYPES[4])))
        done = self.run(config, "--world-size", 2, "--json")
        assert done.exit_code == 0, done.output
        plan = json.loads(done.stdout)
        assert plan["world_size"] == 2
        assert [table["sharding"] for table in plan["tables"]] == ["row_wise"] * 3
        assert [shard["rank"] for shard in plan["tables"][0]["shards"]] == [0, 1]
        assert [rank["lookups"] for rank in plan["ranks"]] == [1.5, 1.5]
        assert sum(rank["bytes"] for rank in plan["ranks"]) == sum(t["bytes"] for t in plan["tables"])

    def test_table_for_hardware_that_is_not_here(self):
        done = self.run("criteo", "--world-size", 8, "--device", "cuda", "--memory", "80GB", "--hosts", 2)
        assert done.exit_code == 0, done.output
        assert "8 cuda ranks on 2 hosts, 80.0 GB a rank" in done.stdout
        for word in ("t_C26", "int8", "quant", "balance"):
            assert word in done.stdout

    @pytest.mark.parametrize(("suffix", "magic"), [(".svg", b"<?xml"), (".png", b"\x89PNG")])
    def test_picture(self, tmp_path, suffix, magic):
        image = tmp_path / f"plan{suffix}"
        done = self.run("demo", "--world-size", 2, "--image", image)
        assert done.exit_code == 0, done.output
        assert image.read_bytes().startswith(magic)

    def test_another_picture_format(self, tmp_path):
        done = self.run("demo", "--image", tmp_path / "plan.bmp")
        assert isinstance(done.exception, PlanError)
        assert ".svg" in str(done.exception)

    def test_options_are_checked_like_the_file(self):
        done = self.run("demo", "--memory", "plenty")
        assert '$.sharding.memory: "plenty" is not a size' in str(done.exception)
        done = self.run("demo", "--replicate-below", "much")
        assert '$.sharding.replicate_below: "much" is not a size' in str(done.exception)

    def test_replicas_are_an_option(self):
        kinds = {}
        for below in ("0", "1GB"):
            done = self.run("demo", "--world-size", 2, "--replicate-below", below, "--json")
            kinds[below] = {table["sharding"] for table in json.loads(done.stdout)["tables"]}
        assert "data_parallel" not in kinds["0"]
        assert kinds["1GB"] == {"data_parallel"}

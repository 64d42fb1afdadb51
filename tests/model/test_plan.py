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


def test_criteo_in_int8_takes_12_1_gb():
    plan = DLRMFactory(criteo()).plan(hardware=Hardware(device="cpu", world_size=2, memory=7 * 10**9))
    assert sum(plan.rank_bytes()) == sum(68 * table.num_embeddings for table in criteo().tables)
    assert round(sum(plan.rank_bytes()) / 1e9, 1) == 12.1
    assert max(plan.rank_bytes()) <= 7 * 10**9


def test_the_plan_keeps_within_the_memory_by_splitting_rows():
    # One table is larger than a rank: the planner has to split it.
    plan = DLRMFactory(criteo()).plan(hardware=Hardware(device="cpu", world_size=8, memory=2 * 10**9))
    assert max(plan.rank_bytes()) <= 2 * 10**9
    assert any(table.sharding == "row_wise" for table in plan.tables)


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

"""Sharded equals unsharded, for every declared sharding, pooling, dtype and architecture."""

from __future__ import annotations

import json

import pytest
from support import sharding

from dlrm_factory.tools.launch import launch


def name(case: tuple) -> str:
    mode, declaration = case
    kinds = "+".join(dict.fromkeys(table.sharding for table in declaration.tables))
    dtypes = "+".join(table.dtype for table in declaration.tables)
    return f"{mode}-{declaration.architecture}-{kinds}-{declaration.tables[0].pooling}-{dtypes}"


@pytest.mark.parametrize("case", list(sharding.cases()), ids=name)
def test_one_process(case):
    mode, declaration = case
    assert sharding.largest_difference(mode, declaration) <= sharding.TOLERANCE


@pytest.mark.multiprocess
def test_two_processes(tmp_path):
    launch(sharding.check_all, tmp_path, processes=2)
    ranks = [json.loads(path.read_text()) for path in tmp_path.glob("*.json")]
    assert sorted(rank["rank"] for rank in ranks) == [0, 1]
    for rank in ranks:
        assert rank["world_size"] == 2
        assert len(rank["cases"]) == len(list(sharding.cases()))
        wrong = [case for case in rank["cases"] if not case["difference"] <= sharding.TOLERANCE]
        assert wrong == []


def test_the_comparison_sees_a_wrong_row():
    declaration = sharding.declared("table_wise", "sum", ("int8", "int8", "int8"))
    state = sharding.random_state(declaration)
    batch = sharding.random_batch(declaration, 5)
    right = sharding.unsharded_logits(declaration, state, batch, quantized=True)
    key = "sparse_arch.embedding_bag_collection.embedding_bags.t_user_id.weight"
    state[key] = state[key].roll(1, dims=0)
    wrong = sharding.unsharded_logits(declaration, state, batch, quantized=True)
    assert abs(right - wrong).max() > 1000 * sharding.TOLERANCE

"""The presets: what they declare, and that they keep the rules."""

from __future__ import annotations

import pytest

from dlrm_factory.config import (
    CRITEO_NUM_EMBEDDINGS,
    PRESETS,
    criteo,
    demo,
    dump_declaration,
    parse_declaration,
    preset,
    tiny,
)
from dlrm_factory.config.checks import problems_of
from dlrm_factory.errors import ConfigError

UPSTREAM_ROWS = [
    45833188, 36746, 17245, 7413, 20243, 3, 7114, 1441, 62, 29275261, 1572176, 345138, 10,
    2209, 11267, 128, 4, 974, 14, 48937457, 11316796, 40094537, 452104, 12606, 104, 35,
]  # fmt: skip


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_keeps_the_rules_and_survives_being_written(name: str) -> None:
    declaration = preset(name)
    assert problems_of(declaration) == []
    assert parse_declaration(dump_declaration(declaration)) == declaration


def test_criteo_has_upstreams_shape() -> None:
    declaration = criteo()
    assert [table.num_embeddings for table in declaration.tables] == UPSTREAM_ROWS
    assert list(CRITEO_NUM_EMBEDDINGS) == UPSTREAM_ROWS
    assert sum(UPSTREAM_ROWS) == 177_944_275
    assert declaration.dense_names == [f"I{i}" for i in range(1, 14)]
    assert declaration.sparse_names == [f"C{i}" for i in range(1, 27)]
    assert {table.embedding_dim for table in declaration.tables} == {64}
    assert {table.dtype for table in declaration.tables} == {"int8"}
    assert declaration.dense_arch_layer_sizes == [512, 256, 64]
    assert declaration.over_arch_layer_sizes == [512, 512, 256, 1]
    assert {feature.ids for feature in declaration.sparse_features} == {"index"}
    assert {feature.transform for feature in declaration.dense_features} == {"none"}


def test_criteo_takes_a_cap() -> None:
    rows = [table.num_embeddings for table in criteo(cap=1000).tables]
    assert rows == [min(n, 1000) for n in UPSTREAM_ROWS]


@pytest.mark.parametrize("cap", [0, -5])
def test_a_cap_below_one_row_is_refused(cap: int) -> None:
    with pytest.raises(ConfigError, match="is not a positive number of rows"):
        criteo(cap=cap)


def test_criteo_raw_takes_the_columns_of_the_click_logs() -> None:
    declaration = criteo(cap=100, raw=True, dtype="fp16")
    assert {feature.ids for feature in declaration.sparse_features} == {"hash"}
    assert {feature.transform for feature in declaration.dense_features} == {"log1p"}
    assert {table.dtype for table in declaration.tables} == {"fp16"}
    assert problems_of(declaration) == []


def test_demo_mixes_table_dtypes_and_multi_valued_features() -> None:
    declaration = demo()
    assert {table.dtype for table in declaration.tables} == {"fp32", "fp16", "int8"}
    assert {table.pooling for table in declaration.tables} == {"sum", "mean"}
    assert any(feature.max_length > 1 for feature in declaration.sparse_features)


def test_tiny_is_small() -> None:
    assert sum(table.num_embeddings * table.embedding_dim for table in tiny().tables) <= 10_000


def test_an_unknown_preset_names_the_others() -> None:
    with pytest.raises(
        ConfigError, match=r'no preset "creteo"; did you mean "criteo"\?; presets: tiny, demo, criteo'
    ):
        preset("creteo")

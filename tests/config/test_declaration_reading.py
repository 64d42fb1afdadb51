"""YAML to declaration and back: types, unknown fields, near matches, duplicate keys, round trips."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from support.depth import examples

from dlrm_factory.config import (
    DenseFeature,
    DLRMDeclaration,
    ServingOptions,
    ShardingOptions,
    SparseFeature,
    Table,
    TrainingOptions,
    demo,
    dump_declaration,
    parse_declaration,
    read_declaration,
    tiny,
)
from dlrm_factory.config.checks import problems_of
from dlrm_factory.config.declaration import Sharding, TableDtype
from dlrm_factory.config.options import ServingProfile
from dlrm_factory.errors import ConfigError


def only_problem(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_declaration(text)
    (problem,) = caught.value.problems
    return problem


def changed(**sections: Any) -> str:
    return yaml.safe_dump(copy.deepcopy(msgspec.to_builtins(tiny())) | sections)


def tables(**fields: Any) -> str:
    """The tiny declaration with ``fields`` set in its third table."""
    data = msgspec.to_builtins(tiny())["tables"]
    data[2].update(fields)
    return changed(tables=data)


TYPES = [
    (tables(pooling="max"), '$.tables[2].pooling: "max" is not one of sum, mean, none'),
    (
        tables(pooling="maen"),
        '$.tables[2].pooling: "maen" is not one of sum, mean, none; did you mean "mean"?',
    ),
    (tables(pooling=3), "$.tables[2].pooling: must be one of sum, mean, none, but is a whole number: 3"),
    (tables(pooling=None), "$.tables[2].pooling: must be one of sum, mean, none, but is nothing"),
    (
        tables(dtype="int16"),
        '$.tables[2].dtype: "int16" is not one of fp32, fp16, int8, int4; did you mean "int8" or "int4"?',
    ),
    (
        tables(sharding="rowwise"),
        '$.tables[2].sharding: "rowwise" is not one of auto, table_wise, row_wise, column_wise, '
        'data_parallel; did you mean "row_wise"?',
    ),
    (
        tables(num_embeddings="many"),
        "$.tables[2].num_embeddings: must be a whole number, but is text: 'many'",
    ),
    (tables(num_embeddings=1.5), "$.tables[2].num_embeddings: must be a whole number, but is a number: 1.5"),
    (tables(poolin="sum"), '$.tables[2].poolin: unknown field; did you mean "pooling"?'),
    (
        tables(qqq=1),
        "$.tables[2].qqq: unknown field; known are name, num_embeddings, embedding_dim, pooling, dtype, "
        "sharding, min_count",
    ),
    (changed(archtecture="dlrm"), '$.archtecture: unknown field; did you mean "architecture"?'),
    (
        changed(architecture="dlrm_dnc"),
        '$.architecture: "dlrm_dnc" is not one of dlrm, dlrm_dcn, dlrm_projection, dlrm_transformer, deepfm; '
        'did you mean "dlrm_dcn" or "dlrm"?',
    ),
    (changed(serving={"batchsize": 1}), '$.serving.batchsize: unknown field; did you mean "batch_size"?'),
    (changed(serving=None), "$.serving: must be a mapping of fields, but is nothing"),
    (
        changed(sharding={"device": "gpu"}),
        '$.sharding.device: "gpu" is not one of cpu, cuda; did you mean "cpu"?',
    ),
    (changed(training={"lable": "click"}), '$.training.lable: unknown field; did you mean "label"?'),
    (changed(tables=3), "$.tables: must be a list, but is a whole number: 3"),
    (changed(tables=[3]), "$.tables[0]: must be a mapping of fields, but is a whole number: 3"),
    (changed(tables=[{"name": "t"}]), "$.tables[0].num_embeddings: is missing"),
    (
        changed(dense_features=[{"name": "price", "transform": "log"}]),
        '$.dense_features[0].transform: "log" is not one of none, log1p, standardize, log1p_standardize; '
        'did you mean "log1p"?',
    ),
    (
        changed(sparse_features=[{"name": "user", "table": "t", "ids": "hashed"}]),
        '$.sparse_features[0].ids: "hashed" is not one of index, hash, vocabulary; did you mean "hash"?',
    ),
    (
        changed(dense_arch_layer_sizes=[16, "x"]),
        "$.dense_arch_layer_sizes[1]: must be a whole number, but is text: 'x'",
    ),
    (changed(dcn_num_layers="y"), "$.dcn_num_layers: must be a whole number or nothing, but is text: 'y'"),
    (
        changed(training={"epochs": True}),
        "$.training.epochs: must be a whole number, but is true or false: True",
    ),
    ("", "$: must be a mapping of fields, but is nothing"),
    ("[1, 2]", "$: must be a mapping of fields, but is a list"),
    ("{1: 2}", "$: a field's name must be text"),
    ("architecture: dlrm", "$.sparse_features: is missing"),
]


@pytest.mark.parametrize(("text", "expected"), TYPES)
def test_a_wrong_type_or_field_says_what_is_allowed(text: str, expected: str) -> None:
    assert only_problem(text) == expected


@pytest.mark.parametrize(
    "text",
    ["a: [", "a: 2020-13-45", "? [a]\n: 3", "!!map [a]", "!!python/object/apply:os.system ['true']", "\x00"],
)
def test_what_is_not_plain_yaml_is_refused(text: str) -> None:
    assert only_problem(text).startswith("is not YAML: ")


@given(st.text(alphabet=st.characters(max_codepoint=0x2FF), max_size=60))
def test_any_text_is_read_or_refused_with_our_own_error(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_declaration(text)


@pytest.mark.parametrize(
    ("text", "line", "key"),
    [
        ("architecture: dlrm\narchitecture: dlrm_dcn\n", 2, "architecture"),
        ("serving:\n  threads: 1\n  batch_size: 2\n  threads: 4\n", 4, "threads"),
        ("tables:\n- {name: a, name: b}\n", 2, "name"),
    ],
)
def test_a_key_written_twice_is_refused(text: str, line: int, key: str) -> None:
    assert only_problem(text) == f'line {line}: the key "{key}" is written twice'


def test_a_number_with_an_exponent_needs_no_dot() -> None:
    text = changed(training={"learning_rate": 0.25})
    assert parse_declaration(text.replace("rate: 0.25", "rate: 1e-3")).training.learning_rate == 0.001
    assert only_problem(text.replace("rate: 0.25", "rate: 1e")).endswith("text: '1e'")


def test_defaults_are_those_of_the_documentation() -> None:
    data = msgspec.to_builtins(tiny())
    for section in ("sharding", "serving", "training", "architecture"):
        del data[section]
    declaration = parse_declaration(yaml.safe_dump(data))
    assert declaration.architecture == "dlrm"
    assert declaration.sharding == ShardingOptions(
        world_size=1, hosts=1, device="cpu", memory=None, timeout_s=5.0
    )
    serving = declaration.serving
    assert (serving.profile, serving.batch_requests, serving.batch_delay_ms) == ("throughput", 64, 1)
    assert (serving.min_workers, serving.threads) == (1, 1)
    assert declaration.training.label == "label"


def test_a_file_is_read_and_named_in_errors(tmp_path: Path) -> None:
    path = tmp_path / "shop.yaml"
    path.write_text(dump_declaration(demo()), encoding="utf-8")
    assert read_declaration(path) == demo()
    assert read_declaration(str(path)) == demo()
    path.write_text(changed(tables=3), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"shop\.yaml: \$\.tables: must be a list") as caught:
        read_declaration(path)
    assert caught.value.source == str(path)


def test_a_file_that_cannot_be_read_is_one_message(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no such file"):
        read_declaration(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_declaration(tmp_path)
    latin = tmp_path / "latin.yaml"
    latin.write_bytes("label: é".encode("latin-1"))
    with pytest.raises(ConfigError, match="cannot be read"):
        read_declaration(latin)


def test_a_written_declaration_has_one_line_an_entry() -> None:
    lines = dump_declaration(tiny()).splitlines()
    assert "- {name: age_days, default: 30.0, transform: log1p, unreadable: error}" in lines
    assert "dense_arch_layer_sizes: [16, 8]" in lines
    assert not any(line.startswith("dcn_") for line in lines)


NAME = st.from_regex(r"[A-Za-z_][A-Za-z0-9_\-]{0,11}", fullmatch=True)
FLOAT = st.floats(min_value=1e-12, max_value=1e12, allow_subnormal=False)
SMALL = st.integers(1, 2**31 - 1)


@st.composite
def declarations(draw: st.DrawFn) -> DLRMDeclaration:
    """Any declaration of architecture dlrm that keeps the rules."""
    dim = draw(st.sampled_from([4, 8, 64]))
    names = draw(st.lists(NAME, min_size=3, max_size=9, unique=True))
    label, names = names[0], names[1:]
    dense, sparse = names[: len(names) // 2], names[len(names) // 2 :]
    table_names = draw(st.lists(NAME, min_size=1, max_size=len(sparse), unique=True))
    used = table_names + draw(
        st.lists(
            st.sampled_from(table_names),
            min_size=len(sparse) - len(table_names),
            max_size=len(sparse) - len(table_names),
        )
    )
    hosts = draw(st.integers(1, 4))
    least = draw(st.integers(1, 8))
    return DLRMDeclaration(
        dense_arch_layer_sizes=[*draw(st.lists(st.integers(1, 512), max_size=3)), dim],
        over_arch_layer_sizes=[*draw(st.lists(st.integers(1, 512), min_size=1, max_size=3)), 1],
        dense_features=[
            DenseFeature(
                name=name,
                default=draw(st.floats(allow_nan=False, allow_infinity=False)),
                transform=draw(st.sampled_from(["none", "log1p"])),
            )
            for name in dense
        ],
        sparse_features=[
            SparseFeature(
                name=name, table=table, ids=draw(st.sampled_from(["index", "hash"])), max_length=draw(SMALL)
            )
            for name, table in zip(sparse, used, strict=True)
        ],
        tables=[
            Table(
                name=name,
                num_embeddings=draw(SMALL),
                embedding_dim=dim,
                pooling=draw(st.sampled_from(["sum", "mean"])),
                dtype=draw(st.sampled_from(get_args(TableDtype))),
                sharding=draw(st.sampled_from(get_args(Sharding))),
            )
            for name in table_names
        ],
        sharding=ShardingOptions(
            world_size=hosts * draw(st.integers(1, 8)),
            hosts=hosts,
            device=draw(st.sampled_from(["cpu", "cuda"])),
            memory=draw(st.sampled_from([None, "80GB", "24GiB", "1000"])),
        ),
        serving=ServingOptions(
            profile=draw(st.sampled_from(get_args(ServingProfile))),
            batch_size=draw(st.none() | SMALL),
            min_workers=least,
            max_workers=least + draw(st.integers(0, 8)),
        ),
        training=TrainingOptions(
            label=label,
            learning_rate=draw(FLOAT),
            sparse_learning_rate=draw(FLOAT),
            holdout=draw(st.floats(0.01, 0.99)),
            seed=draw(st.integers(0, 2**63 - 1)),
            separator=draw(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=3)),
        ),
    )


@pytest.mark.parametrize("separator", ["\x85", "\u2028", "a\u2029b", "\n", "\t", '"', "é"])
def test_any_separator_survives(separator: str) -> None:
    declaration = msgspec.structs.replace(tiny(), training=TrainingOptions(separator=separator))
    assert parse_declaration(dump_declaration(declaration)) == declaration


@settings(max_examples=examples(60))
@given(declarations())
def test_a_declaration_survives_being_written_and_read(declaration: DLRMDeclaration) -> None:
    assert problems_of(declaration) == []
    assert parse_declaration(dump_declaration(declaration)) == declaration


@pytest.mark.parametrize(
    ("sharding", "why"),
    [
        ("grid_shard", "pools means wrongly"),
        ("table_row_wise", "use row_wise"),
        ("table_column_wise", "use column_wise"),
    ],
)
def test_shardings_of_torchrec_that_are_not_offered_say_why(sharding, why):
    text = dump_declaration(tiny()).replace("sharding: auto", f"sharding: {sharding}", 1)
    with pytest.raises(
        ConfigError, match=rf'^\$\.tables\[0\]\.sharding: "{sharding}" is not offered: .*{why}'
    ):
        parse_declaration(text)


def test_words_that_yaml_takes_for_booleans_are_words():
    text = dump_declaration(tiny()).replace("compile: 'off'", "compile: off")
    assert "compile: off" in text
    assert parse_declaration(text).serving.compile == "off"
    # Others read what we write by YAML 1.1, so it stays quoted there.
    assert "compile: 'off'" in dump_declaration(tiny())

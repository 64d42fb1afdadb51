"""Every rule of the declaration: what is refused, at which path, in which words."""

from __future__ import annotations

import copy
from typing import Any

import msgspec
import pytest
import yaml
from torch import nn

from dlrm_factory.config import DLRMDeclaration, dump_declaration, parse_declaration, tiny
from dlrm_factory.config.checks import problems_of
from dlrm_factory.errors import ConfigError
from dlrm_factory.model.model import make_model


def with_change(path: str, value: Any) -> dict[str, Any]:
    """The tiny declaration as plain data, with ``value`` at the dotted ``path``."""
    data = copy.deepcopy(msgspec.to_builtins(tiny()))
    *steps, last = [int(step) if step.isdigit() else step for step in path.split(".")]
    place = data
    for step in steps:
        place = place[step]
    place[last] = value
    return data


def problems(data: dict[str, Any]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse_declaration(yaml.safe_dump(data))
    return caught.value.problems


WRONG = [
    # names
    ("tables.1.name", "t.user", '$.tables[1].name: "t.user" is not a name'),
    ("dense_features.0.name", "price@shop", '$.dense_features[0].name: "price@shop" is not a name'),
    ("sparse_features.2.name", "", '$.sparse_features[2].name: "" is not a name'),
    ("sparse_features.2.name", "3tags", '$.sparse_features[2].name: "3tags" is not a name'),
    (
        "tables.1.name",
        "items",
        '$.tables[1].name: "items" is an attribute of torch.nn.ModuleDict, in which TorchRec keeps tables by name; '
        "choose another, such as t_items",
    ),
    ("tables.0.name", "__class__", '$.tables[0].name: "__class__" is an attribute of torch.nn.ModuleDict'),
    # something of everything
    ("dense_features", [], "$.dense_features: is empty; a DLRM needs at least one entry here"),
    ("sparse_features", [], "$.sparse_features: is empty; a DLRM needs at least one entry here"),
    ("tables", [], "$.tables: is empty; a DLRM needs at least one entry here"),
    # duplicates
    (
        "dense_features.1.name",
        "price",
        '$.dense_features[1].name: duplicate feature name "price", already declared at $.dense',
    ),
    (
        "sparse_features.0.name",
        "price",
        '$.sparse_features[0].name: duplicate feature name "price", already declared at $.dense',
    ),
    (
        "tables.2.name",
        "t_user_id",
        '$.tables[2].name: duplicate table name "t_user_id", already declared at $.tables[0].name',
    ),
    # features and tables
    (
        "sparse_features.1.table",
        "t_item_idd",
        '$.sparse_features[1].table: feature "item_id" has no table "t_item_idd"; did you mean "t_item_id"',
    ),
    ("sparse_features.1.table", "t_user_id", '$.tables[1]: no feature uses table "t_item_id"; remove it'),
    ("sparse_features.0.max_length", 0, "$.sparse_features[0].max_length: 0 is not positive"),
    ("dense_features.0.default", float("nan"), "$.dense_features[0].default: nan is not a finite number"),
    ("dense_features.0.default", float("-inf"), "$.dense_features[0].default: -inf is not a finite number"),
    # transforms, bags, vocabularies
    (
        "dense_features.0.clip",
        [3.0, 1.0],
        "$.dense_features[0].clip: [3.0, 1.0] is not a least and a greater",
    ),
    (
        "dense_features.0.missing_values",
        ["?", "-999"],
        '$.dense_features[0].missing_values[1]: "-999" is a number',
    ),
    ("dense_features.0.missing_values", [" "], "$.dense_features[0].missing_values[0]: is empty"),
    ("dense_features.0.clip", [0.0, float("inf")], "$.dense_features[0].clip: [0.0, inf] is not a least"),
    ("dense_features.0.mean", 1.0, "$.dense_features[0].mean: belongs to transform standardize"),
    ("dense_features.0.std", 1.0, "$.dense_features[0]: give both mean and std, or neither"),
    (
        "sparse_features.2.weighted",
        True,
        '$.sparse_features[2].weighted: table "t_item_tags" has pooling mean',
    ),
    (
        "sparse_features.0.out_of_vocabulary",
        "drop",
        "$.sparse_features[0].out_of_vocabulary: belongs to ids: vocabulary, not to ids: hash; remove it",
    ),
    ("tables.1.min_count", 0, "$.tables[1].min_count: 0 is not positive"),
    ("tables.1.min_count", 2, "$.tables[1].min_count: belongs to tables with ids: vocabulary; remove it"),
    # table sizes
    ("tables.0.num_embeddings", 0, "$.tables[0].num_embeddings: 0 is outside [1, 2147483647]"),
    ("tables.0.num_embeddings", 2**31, "$.tables[0].num_embeddings: 2147483648 is outside [1, 2147483647]"),
    ("tables.0.embedding_dim", 6, "$.tables[0].embedding_dim: 6 is not a positive multiple of 4"),
    ("tables.0.embedding_dim", 0, "$.tables[0].embedding_dim: 0 is not a positive multiple of 4"),
    (
        "tables.1.embedding_dim",
        16,
        '$.tables[1].embedding_dim: 16 differs from 8 of table "t_user_id"; dlrm needs one',
    ),
    # layer sizes
    ("dense_arch_layer_sizes", [], "$.dense_arch_layer_sizes: is empty; give at least one layer size"),
    ("dense_arch_layer_sizes", [-1, 8], "$.dense_arch_layer_sizes[0]: -1 is not a positive layer size"),
    (
        "dense_arch_layer_sizes",
        [16, 12],
        "$.dense_arch_layer_sizes[1]: the last size is 12 but embedding_dim is 8; they must be equal",
    ),
    ("over_arch_layer_sizes", [], "$.over_arch_layer_sizes: is empty; give at least one layer size"),
    ("over_arch_layer_sizes", [16, 2], "$.over_arch_layer_sizes[1]: the last size is 2 but must be 1"),
    ("over_arch_layer_sizes", [1], "$.over_arch_layer_sizes: has one size; give at least one hidden layer"),
    # architectures
    ("architecture", "dlrm_dcn", "$.dcn_num_layers: is missing; architecture dlrm_dcn needs it"),
    ("architecture", "dlrm_dcn", "$.dcn_low_rank_dim: is missing; architecture dlrm_dcn needs it"),
    (
        "architecture",
        "dlrm_projection",
        "$.interaction_branch1_layer_sizes: is missing; architecture dlrm_projection needs it",
    ),
    ("dcn_num_layers", 2, "$.dcn_num_layers: belongs to architecture dlrm_dcn, not to dlrm; remove it"),
    ("dcn_low_rank_dim", 0, "$.dcn_low_rank_dim: 0 is not positive"),
    (
        "interaction_branch2_layer_sizes",
        [8],
        "$.interaction_branch2_layer_sizes: belongs to architecture dlrm_projection, not to dlrm",
    ),
    # sharding
    ("sharding.world_size", 0, "$.sharding.world_size: 0 is not positive"),
    ("sharding.hosts", 2, "$.sharding.hosts: 2 does not divide world_size 1"),
    ("sharding.hosts", 0, "$.sharding.hosts: 0 does not divide world_size 1"),
    ("sharding.timeout_s", 0, "$.sharding.timeout_s: 0 is not a positive, finite number"),
    (
        "sharding",
        {"world_size": 2, "timeout_s": 60},
        "$.sharding.timeout_s: 60 s is not below serving.response_timeout_s 60",
    ),
    ("sharding.memory", "much", '$.sharding.memory: "much" is not a size'),
    # serving
    ("serving.batch_size", 0, "$.serving.batch_size: 0 is below 1"),
    ("serving.max_batch_delay_ms", 0, "$.serving.max_batch_delay_ms: 0 is below 1"),
    ("serving.min_workers", 0, "$.serving.min_workers: 0 is below 1"),
    ("serving.min_workers", 9, "$.serving.max_workers: 4 is below min_workers 9"),
    ("serving.response_timeout_s", 0, "$.serving.response_timeout_s: 0 is below 1"),
    ("serving.startup_timeout_s", 0, "$.serving.startup_timeout_s: 0 is below 1"),
    ("serving.threads", 0, "$.serving.threads: 0 is below 1"),
    ("serving.max_samples", 0, "$.serving.max_samples: 0 is below 1"),
    ("serving.max_body_bytes", 0, "$.serving.max_body_bytes: 0 is below 1"),
    # training
    ("training.batch_size", 0, "$.training.batch_size: 0 is not a positive, finite number"),
    ("training.epochs", 0, "$.training.epochs: 0 is not a positive, finite number"),
    ("training.learning_rate", -0.1, "$.training.learning_rate: -0.1 is not a positive, finite number"),
    (
        "training.learning_rate",
        float("nan"),
        "$.training.learning_rate: nan is not a positive, finite number",
    ),
    (
        "training.sparse_learning_rate",
        float("inf"),
        "$.training.sparse_learning_rate: inf is not a positive, finite number",
    ),
    ("training.gradient_clipping", 0.0, "$.training.gradient_clipping: 0.0 is not a positive"),
    ("training.evaluate_every", 0, "$.training.evaluate_every: 0 is not a positive"),
    ("training.early_stopping", -1, "$.training.early_stopping: -1 is not a positive"),
    ("training.warmup_steps", -1, "$.training.warmup_steps: -1 is below 0"),
    ("training.validation", 1.0, "$.training.validation: 1.0 is outside (0, 1)"),
    ("training.refit", True, "$.training.refit: needs early_stopping"),
    ("training.max_bad_rows", 1.0, "$.training.max_bad_rows: 1.0 is outside [0, 1)"),
    ("training.split", "time", "$.training.time_column: is needed for split: time"),
    ("training.time_column", "day", "$.training.time_column: is only for split: time"),
    ("training.holdout", 1.0, "$.training.holdout: 1.0 is outside (0, 1)"),
    ("training.holdout", 0.0, "$.training.holdout: 0.0 is outside (0, 1)"),
    ("training.seed", -1, "$.training.seed: -1 is outside [0, 2**63)"),
    ("training.label", "price", '$.training.label: "price" is also a feature'),
    ("training.label", "item_id", '$.training.label: "item_id" is also a feature'),
    ("training.separator", "", "$.training.separator: is empty"),
]


@pytest.mark.parametrize(("path", "value", "expected"), WRONG)
def test_a_broken_rule_is_refused_with_its_path(path: str, value: Any, expected: str) -> None:
    found = problems(with_change(path, value))
    assert any(problem.startswith(expected) for problem in found), found


def test_the_embedding_dim_that_differs_is_the_only_complaint_of_its_kind() -> None:
    assert len(problems(with_change("tables.1.embedding_dim", 16))) == 1


@pytest.mark.parametrize("name", ["interaction_branch1_layer_sizes", "interaction_branch2_layer_sizes"])
def test_a_projection_branch_ends_in_a_multiple_of_embedding_dim(name: str) -> None:
    data = with_change("architecture", "dlrm_projection")
    data["interaction_branch1_layer_sizes"] = data["interaction_branch2_layer_sizes"] = [16]
    assert parse_declaration(yaml.safe_dump(data)).architecture == "dlrm_projection"
    data[name] = [32, 12]
    assert problems(data) == [f"$.{name}[1]: the last size 12 is not a multiple of embedding_dim 8"]


def test_an_embedding_dim_of_zero_is_reported_beside_the_projection_branches() -> None:
    data = with_change("architecture", "dlrm_projection")
    data["interaction_branch1_layer_sizes"] = data["interaction_branch2_layer_sizes"] = [16]
    data["tables"][0]["embedding_dim"] = 0
    assert any("$.tables[0].embedding_dim: 0" in problem for problem in problems(data))


def test_dcn_is_accepted_with_its_options() -> None:
    data = with_change("architecture", "dlrm_dcn") | {"dcn_num_layers": 2, "dcn_low_rank_dim": 8}
    assert parse_declaration(yaml.safe_dump(data)).dcn_num_layers == 2


def test_mistakes_in_several_places_are_reported_together() -> None:
    data = with_change("tables.0.num_embeddings", 0)
    data["serving"]["threads"] = 0
    data["over_arch_layer_sizes"] = [16, 3]
    with pytest.raises(ConfigError) as caught:
        parse_declaration(yaml.safe_dump(data), source="shop.yaml")
    assert len(caught.value.problems) == 3
    message = str(caught.value)
    assert message.startswith("shop.yaml: 3 problems\n")
    for part in ("$.tables[0].num_embeddings", "$.serving.threads", "$.over_arch_layer_sizes[1]"):
        assert f"\n  {part}: " in message


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("tables.0.num_embeddings", 1),
        ("tables.0.num_embeddings", 2**31 - 1),
        ("serving.batch_size", 1),
        ("sharding.memory", "24GiB"),
        ("training.seed", 2**63 - 1),
        ("training.learning_rate", 1),
    ],
)
def test_the_edge_of_what_is_allowed_is_allowed(path: str, value: Any) -> None:
    assert parse_declaration(yaml.safe_dump(with_change(path, value)))


def test_two_features_may_share_a_table() -> None:
    data = with_change("sparse_features.1.table", "t_user_id")
    del data["tables"][1]
    declaration = parse_declaration(yaml.safe_dump(data))
    assert declaration.features_of("t_user_id") == ["user_id", "item_id"]
    assert declaration.table("t_user_id").num_embeddings == 1000


def test_a_good_declaration_has_no_problems_and_is_frozen() -> None:
    declaration: DLRMDeclaration = tiny()
    assert problems_of(declaration) == []
    with pytest.raises(AttributeError):
        declaration.tables = []  # type: ignore[misc]


@pytest.mark.parametrize(
    ("feature", "expected"),
    [
        (
            {"out_of_vocabulary": 0},
            "$.sparse_features[1].out_of_vocabulary: 0 is not a positive number of rows",
        ),
        (
            {"out_of_vocabulary": 200},
            "$.tables[1].num_embeddings: 200 leaves no row for ids of the vocabulary",
        ),
        ({"table": "t_user_id"}, "$.tables[0]: some of its features use ids: vocabulary and some do not"),
    ],
)
def test_a_vocabulary_needs_room_of_its_own(feature: dict[str, Any], expected: str) -> None:
    data = with_change("sparse_features.1.ids", "vocabulary")
    data["sparse_features"][1] |= feature
    assert any(problem.startswith(expected) for problem in problems(data))


@pytest.mark.parametrize(("mean", "std"), [(float("nan"), 1.0), (0.0, 0.0), (0.0, -1.0), (0.0, float("inf"))])
def test_statistics_are_finite_and_std_positive(mean: float, std: float) -> None:
    data = with_change("dense_features.0.transform", "standardize")
    data["dense_features"][0] |= {"mean": mean, "std": std}
    assert problems(data)[0].startswith("$.dense_features[0].")


def test_new_fields_survive_writing_and_reading() -> None:
    data = with_change("sparse_features.1.ids", "vocabulary")
    data["sparse_features"][1] |= {
        "out_of_vocabulary": "drop",
        "weighted": True,
        "over_max_length": "truncate",
    }
    data["dense_features"][0] |= {"clip": [0, 2], "transform": "standardize", "mean": 0.1, "std": 1 / 3}
    declaration = parse_declaration(yaml.safe_dump(data))
    assert declaration.dense_features[0].std == 1 / 3
    assert parse_declaration(dump_declaration(declaration)) == declaration
    assert declaration.vocabulary_tables == ["t_item_id"]
    assert declaration.is_weighted


def test_a_table_is_called_nothing_that_torch_would_take_for_its_own() -> None:
    """`torch.nn.ModuleDict` refuses its own attributes with a KeyError; features and outputs lie in none."""
    for name in dir(nn.ModuleDict()):
        data = with_change("tables.1.name", name)
        data["sparse_features"][1]["table"] = name
        assert [problem.partition(":")[0] for problem in problems(data)] == ["$.tables[1].name"], name
    for name in ("items", "keys", "type", "training", "forward"):
        data = with_change("sparse_features.1.name", name)
        data["outputs"] = [{"name": name}]
        make_model(parse_declaration(yaml.safe_dump(data)))

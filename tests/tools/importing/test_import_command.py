"""`dlrm import`, as a user calls it."""

from __future__ import annotations

import json

import msgspec
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.batches import random_batch, random_state
from typer.testing import CliRunner

from dlrm_factory.config import dump_declaration, read_declaration, tiny
from dlrm_factory.errors import ConfigError, WeightsError
from dlrm_factory.factory import DLRMFactory
from dlrm_factory.features import FeatureEncoder
from dlrm_factory.model.model import make_model
from dlrm_factory.scorer import Scorer
from dlrm_factory.tools.archive.reading import unpacked_weights
from dlrm_factory.tools.archive.sealing import archive_model
from dlrm_factory.tools.cli.main import app
from dlrm_factory.weights.checkpoint import open_checkpoint


@pytest.fixture
def state(tmp_path, monkeypatch):
    """A state dict in w.pt and its declaration in model.yaml, in the current folder."""
    monkeypatch.chdir(tmp_path)
    state = random_state(tiny())
    torch.save({"model": state}, "w.pt")
    (tmp_path / "model.yaml").write_text(dump_declaration(tiny()), encoding="utf-8")
    return state


def run(*arguments):
    done = CliRunner().invoke(app, ["import", *map(str, arguments)])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


def test_import_then_archive_then_score(state, tmp_path):
    output = run("w.pt", "--config", "model.yaml", "-o", "c.safetensors")
    assert "imported 11 weights" in output
    assert "it has no held-out samples, so `dlrm archive` cannot compare AUC" in output
    assert "serving.precision: auto is fp32 for it on every CPU" in output
    archive_model(tmp_path / "c.safetensors", tmp_path / "m.mar")
    batch = random_batch(tiny(), 32)
    expected = Scorer(DLRMFactory(tiny()).build(mode="float", weights=state)).logits(batch)
    with unpacked_weights(tmp_path / "m.mar") as folder:
        found = Scorer.load(folder).logits(batch)
    assert np.abs(found - expected).max() <= 1e-5
    assert np.ptp(expected) > 0.1


def test_json(state):
    found = json.loads(run("w.pt", "--config", "model.yaml", "--json"))
    assert found["checkpoint"] == "imported.safetensors"
    assert (found["source"], found["naming"], found["tables"]) == ("torch.save file", "torchrec", 3)
    assert found["parameters"] == sum(value.numel() for value in state.values())


def test_from_weights_to_a_declaration_to_a_checkpoint(state):
    output = run("w.pt", "--write-config", "first.yaml")
    assert "dlrm import w.pt --config first.yaml --output imported.safetensors" in output
    found = read_declaration("first.yaml")
    assert [table.name for table in found.tables] == ["t_user_id", "t_item_id", "t_item_tags"]
    assert found.sparse_names == ["user_id", "item_id", "item_tags"]
    assert [t.num_embeddings for t in found.tables] == [1000, 200, 50]
    assert found.dense_names == ["dense_0", "dense_1"]
    run("w.pt", "--config", "first.yaml")
    assert set(open_checkpoint("imported.safetensors").dense_state()) < set(state)
    with pytest.raises(ConfigError, match="exists; name another file"):
        run("w.pt", "--write-config", "first.yaml")


@pytest.mark.parametrize(
    "options",
    [
        {"architecture": "dlrm_dcn", "dcn_num_layers": 2, "dcn_low_rank_dim": 4},
        {
            "architecture": "dlrm_projection",
            "interaction_branch1_layer_sizes": [16, 8],
            "interaction_branch2_layer_sizes": [24, 16],
        },
        {"over_arch_layer_sizes": [32, 16, 8, 1], "dense_arch_layer_sizes": [8]},
    ],
)
def test_the_declaration_of_every_architecture(options, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    declaration = msgspec.structs.replace(tiny(), **options)
    torch.save(make_model(declaration, tables_device="cpu").state_dict(), "w.pt")
    run("w.pt", "--write-config", "first.yaml")
    found = read_declaration("first.yaml")
    assert {name: getattr(found, name) for name in options} == options


def test_tables_of_a_sorted_state_dict_are_in_the_order_of_their_numbers(tmp_path, monkeypatch):
    """Keys as a sharded model gives them: t_cat_10 before t_cat_2."""
    monkeypatch.chdir(tmp_path)
    names = sorted(f"t_cat_{i}" for i in range(12))
    tables = [msgspec.structs.replace(tiny().tables[0], name=name) for name in names]
    features = [
        msgspec.structs.replace(tiny().sparse_features[1], name=name.removeprefix("t_"), table=name)
        for name in names
    ]
    declaration = msgspec.structs.replace(tiny(), tables=tables, sparse_features=features)
    torch.save(random_state(declaration), "w.pt")
    run("w.pt", "--write-config", "first.yaml")
    assert [table.name for table in read_declaration("first.yaml").tables] == [
        f"t_cat_{i}" for i in range(12)
    ]


def test_a_snapshot_of_training(state, tmp_path):
    """Two tables in columns, as one rank cuts them too."""
    tables = [msgspec.structs.replace(table, sharding="column_wise") for table in tiny().tables[:2]]
    declaration = msgspec.structs.replace(tiny(), tables=[*tables, tiny().tables[2]])
    (tmp_path / "model.yaml").write_text(dump_declaration(declaration), encoding="utf-8")
    trained = [
        "train",
        "model.yaml",
        "--rows",
        "3000",
        "--epochs",
        "1",
        "--checkpoint-dir",
        "steps",
        "-o",
        "t.safetensors",
    ]
    done = CliRunner().invoke(app, trained)
    assert done.exit_code == 0, done.output
    output = run(next((tmp_path / "steps").iterdir()), "--config", "model.yaml")
    assert "named as by snapshot" in output
    found, expected = load_file("imported.safetensors"), load_file("t.safetensors")
    assert set(state) <= set(found) <= set(expected)
    assert all(torch.equal(found[key], expected[key]) for key in state)


def with_vocabulary():
    feature = msgspec.structs.replace(tiny().sparse_features[1], ids="vocabulary", out_of_vocabulary=2)
    return msgspec.structs.replace(
        tiny(), sparse_features=[tiny().sparse_features[0], feature, tiny().sparse_features[2]]
    )


@pytest.fixture
def vocabulary(state, tmp_path):
    (tmp_path / "model.yaml").write_text(dump_declaration(with_vocabulary()), encoding="utf-8")
    path = tmp_path / "items.txt"
    path.write_text("".join(f"sku {i} ü\n" for i in range(198)), encoding="utf-8")
    return path


def test_a_vocabulary(vocabulary):
    run("w.pt", "--config", "model.yaml", "--vocabulary", "t_item_id=items.txt")
    checkpoint = open_checkpoint("imported.safetensors")
    assert checkpoint.vocabularies is not None
    encoder = FeatureEncoder(checkpoint.declaration, checkpoint.vocabularies)
    batch = encoder.encode({"item_id": [f"sku {i} ü" for i in (0, 7, 197)]}, 3)
    assert batch.values.tolist() == [0, 7, 197]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("a\n\nb\n", "line 2 is empty"),
        ("a\nb\na\n", 'line 3: "a" is also line 1; an id has one row'),
        ("".join(f"{i}\n" for i in range(199)), "has more than 198 ids, but t_item_id has 200 rows"),
        (b"\xff\xfe", "cannot be read as UTF-8 text"),
    ],
)
def test_a_wrong_vocabulary(content, reason, vocabulary):
    vocabulary.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(WeightsError, match=reason):
        run("w.pt", "--config", "model.yaml", "--vocabulary", "t_item_id=items.txt")


def test_vocabularies_that_are_missing_or_too_many(vocabulary):
    with pytest.raises(WeightsError, match="give --vocabulary t_item_id=FILE"):
        run("w.pt", "--config", "model.yaml")
    with pytest.raises(WeightsError, match='uses a table "t_item_ids"; did you mean "t_item_id"'):
        run("w.pt", "--config", "model.yaml", "--vocabulary", "t_item_ids=items.txt")
    with pytest.raises(ConfigError, match="is not TABLE=FILE"):
        run("w.pt", "--config", "model.yaml", "--vocabulary", "items.txt")


def test_a_declaration_is_needed(state):
    with pytest.raises(ConfigError, match=r"give --config model.yaml; --write-config"):
        run("w.pt")
    with pytest.raises(ConfigError, match="not both"):
        run("w.pt", "--config", "model.yaml", "--write-config", "first.yaml")

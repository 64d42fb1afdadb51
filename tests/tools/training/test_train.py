from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.commands import run_train

from dlrm_factory.batch import to_dense, to_keyed_jagged_tensors
from dlrm_factory.config import DLRMDeclaration, criteo, dump_declaration, parse_declaration, tiny
from dlrm_factory.errors import ConfigError, DataError, WeightsError
from dlrm_factory.factory import DLRMFactory
from dlrm_factory.tools.data.source import generate_clicks
from dlrm_factory.tools.data.split import split_rows
from dlrm_factory.tools.metrics.metrics import auc, log_loss
from dlrm_factory.tools.training import train
from dlrm_factory.weights.checkpoint import open_checkpoint

SAMPLES = Path(__file__).resolve().parents[3] / "../shared/data"


def with_training(declaration: DLRMDeclaration, **options) -> DLRMDeclaration:
    training = msgspec.structs.replace(declaration.training, **options)
    return msgspec.structs.replace(declaration, training=training)


@pytest.mark.slow
def test_training_learns_and_the_checkpoint_holds_what_was_measured(tmp_path):
    declaration = with_training(tiny(), epochs=3)
    stages = []
    report = train(
        declaration, output=tmp_path / "c.safetensors", rows=30_000, observe=lambda p: stages.append(p.stage)
    )
    assert report.best_auc is not None
    assert report.held_out_auc is not None
    assert report.best_log_loss is not None
    assert report.training_rows + report.held_out_rows == report.rows == 30_000
    assert 0.65 < report.held_out_auc <= report.best_auc + 0.01
    assert report.best_log_loss - 0.01 < report.held_out_log_loss < report.best_log_loss + 0.06
    assert list(dict.fromkeys(stages)) == ["data", "training", "evaluation"]

    checkpoint = open_checkpoint(tmp_path / "c.safetensors")
    clicks = generate_clicks(declaration, rows=30_000, write_to=None, observe=lambda p: None)
    found = checkpoint.declaration.sparse_features
    lengths = clicks.dataset.features(np.arange(30_000)).lengths.mean(axis=1)
    assert [feature.pooling_factor for feature in found] == pytest.approx(lengths.tolist(), abs=1e-3)
    assert lengths[0] < 1 < lengths[2]
    undeclared = [msgspec.structs.replace(feature, pooling_factor=None) for feature in found]
    assert msgspec.structs.replace(checkpoint.declaration, sparse_features=undeclared) == declaration
    assert float(checkpoint.metadata["held_out_auc"]) == report.held_out_auc

    _, held_out = split_rows(30_000, holdout=0.1, seed=1)
    batch = clicks.dataset.features(held_out)
    model = DLRMFactory(declaration).build(mode="float", weights=checkpoint).model
    with torch.no_grad():
        logits = model(to_dense(batch), *to_keyed_jagged_tensors(batch, declaration))
        logits = logits.numpy().ravel()
    labels = clicks.dataset.labels[held_out, 0]
    assert auc(labels, logits) == pytest.approx(report.held_out_auc, abs=1e-6)
    assert log_loss(labels, logits) == pytest.approx(report.held_out_log_loss, abs=1e-6)


def test_only_rows_that_were_looked_up_move(tmp_path):
    declaration = tiny()
    train(declaration, output=tmp_path / "c.safetensors", rows=300)
    trained = open_checkpoint(tmp_path / "c.safetensors").table_rows("t_item_id", 0, 200)
    clicks = generate_clicks(declaration, rows=300, write_to=None, observe=lambda p: None)
    training, _ = split_rows(300, holdout=0.1, seed=1)
    seen = np.unique(clicks.dataset.values[1][clicks.dataset.offsets[1][training]])
    initial = DLRMFactory(declaration).build(mode="float").state_dict()
    before = initial["sparse_arch.embedding_bag_collection.embedding_bags.t_item_id.weight"]
    moved = (trained != before).any(dim=1).numpy()
    assert 50 < len(seen) < 200
    assert np.flatnonzero(moved).tolist() == seen.tolist()


def test_a_seed_gives_the_same_weights_bit_by_bit(tmp_path):
    declaration = with_training(tiny(), epochs=2)
    paths = [tmp_path / name for name in ("one.safetensors", "two.safetensors")]
    for path in paths:
        train(declaration, output=path, rows=3000)
    train(with_training(declaration, seed=2), output=tmp_path / "other.safetensors", rows=3000)
    one, two, other = (load_file(path) for path in (*paths, tmp_path / "other.safetensors"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)
    differing = [key for key in one if not key.startswith("seen_ids.")]  # a small table has every row seen
    assert not any(torch.equal(one[key], other[key]) for key in differing)
    assert open_checkpoint(paths[0]).metadata == open_checkpoint(paths[1]).metadata


@pytest.mark.parametrize("architecture", ["dlrm_dcn", "dlrm_projection"])
def test_the_other_architectures_train(tmp_path, architecture):
    options = {
        "dlrm_dcn": {"dcn_num_layers": 2, "dcn_low_rank_dim": 4},
        "dlrm_projection": {"interaction_branch1_layer_sizes": [16], "interaction_branch2_layer_sizes": [16]},
    }[architecture]
    declaration = with_training(
        msgspec.structs.replace(tiny(), architecture=architecture, **options), epochs=3
    )
    report = train(declaration, output=tmp_path / "c.safetensors", rows=20_000)
    assert report.held_out_auc is not None
    assert report.held_out_auc > 0.6


def test_labels_that_are_all_alike_leave_auc_undefined(tmp_path, write_csv, declaration):
    path = write_csv(*("0,1,2,u,3,4" for _ in range(60)))
    report = train(declaration, output=tmp_path / "c.safetensors", data=[path])
    assert (report.held_out_auc, report.best_auc) == (None, None)
    assert "held_out_auc" not in open_checkpoint(tmp_path / "c.safetensors").metadata


def test_too_few_rows(tmp_path, write_csv, declaration):
    with pytest.raises(DataError, match="1 rows are too few: 1 to train on and 0 held out"):
        train(declaration, output=tmp_path / "c.safetensors", data=[write_csv("0,1,2,u,3,4")])
    with pytest.raises(DataError, match="0 rows are too few"):
        train(declaration, output=tmp_path / "c.safetensors", data=[write_csv()])


def test_a_diverged_training_says_what_to_change_and_leaves_no_file(tmp_path):
    with pytest.raises(ConfigError, match=r"the training loss became (nan|inf); lower learning_rate"):
        train(with_training(tiny(), learning_rate=1e30), output=tmp_path / "c.safetensors", rows=3000)
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_cannot_be_written_is_refused_before_training(tmp_path):
    (tmp_path / "file").touch()
    stages = []
    for output in (tmp_path, tmp_path / "file" / "c.safetensors"):
        with pytest.raises(WeightsError, match="cannot be written"):
            train(tiny(), output=output, observe=stages.append)
    assert stages == []


@pytest.mark.skipif(not SAMPLES.exists(), reason="the samples are not here")
def test_real_criteo_rows(tmp_path):
    declaration = with_training(criteo(cap=1000, raw=True), batch_size=32, epochs=3)
    report = train(
        declaration, output=tmp_path / "c.safetensors", data=[SAMPLES / "criteo_sample.csv"], rows=190
    )
    assert (report.rows, report.best_auc) == (190, None)
    assert report.training_loss < 0.6


MOVIELENS = """
dense_arch_layer_sizes: [16, 8]
over_arch_layer_sizes: [16, 1]
dense_features: [{name: age}]
sparse_features:
  - {name: user_id, table: t_user_id, ids: hash, max_length: 1}
  - {name: title, table: t_title, ids: hash, max_length: 1}
  - {name: genres, table: t_genres, ids: hash, max_length: 6}
tables:
  - {name: t_user_id, num_embeddings: 1000, embedding_dim: 8}
  - {name: t_title, num_embeddings: 1000, embedding_dim: 8}
  - {name: t_genres, num_embeddings: 100, embedding_dim: 8, pooling: mean}
training: {label: gender_is_f, batch_size: 16}
"""


@pytest.mark.skipif(not SAMPLES.exists(), reason="the samples are not here")
def test_real_multi_valued_rows(tmp_path):
    header, *lines = (SAMPLES / "movielens_sample.csv").read_text().splitlines()
    path = tmp_path / "movielens.csv"
    labelled = [f"{line},{int(',F,' in line)}" for line in lines]
    path.write_text("\n".join([f"{header},gender_is_f", *labelled]) + "\n")
    report = train(parse_declaration(MOVIELENS), output=tmp_path / "c.safetensors", data=[path])
    assert report.rows == 200
    assert report.held_out_log_loss < 1.5


def test_the_command_writes_a_checkpoint_and_prints_json(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    same = ("--epochs", "2", "--seed", "5")
    result = run_train("tiny", "--rows", "3000", *same, "--json", "--write-data", "clicks.csv")
    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout)
    assert printed["checkpoint"] == "checkpoint.safetensors"
    assert (printed["rows"], printed["epochs"]) == (3000, 2)
    assert 0.6 < printed["best_auc"] < 0.9
    kept = open_checkpoint(tmp_path / "checkpoint.safetensors").declaration.training
    assert (kept.seed, kept.epochs) == (5, 2)

    again = run_train("tiny", "--data", "clicks.csv", *same, "-o", "again.safetensors")
    assert again.exit_code == 0, again.output
    assert "held-out AUC" in again.stdout
    assert "best reachable" not in again.stdout
    paths = (tmp_path / "again.safetensors", tmp_path / "checkpoint.safetensors")
    from_file, generated = (open_checkpoint(path).table_rows("t_user_id", 0, 1000) for path in paths)
    assert torch.equal(from_file, generated)


def test_the_command_prints_the_best_reachable_figures(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run_train("tiny", "--rows", "2000")
    assert result.exit_code == 0, result.output
    assert "best reachable" in result.stdout
    assert "saved checkpoint.safetensors" in result.stdout


def test_the_command_refuses_a_seed_that_no_declaration_may_have(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run_train("tiny", "--seed", str(2**63))
    assert isinstance(result.exception, ConfigError)
    assert "$.training.seed" in str(result.exception)


@pytest.mark.multiprocess
def test_two_ranks_train_like_one_with_twice_the_batch(tmp_path):
    declaration = with_training(tiny(), batch_size=64)
    assert len(split_rows(4001, holdout=0.1, seed=1)[0]) % 2 == 0  # no odd row that two ranks leave out
    (tmp_path / "two.yaml").write_text(dump_declaration(declaration))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "dlrm_factory.cli", "train", "two.yaml", "--rows", "4001", "--json"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    # Every rank evaluates, one prints.
    (printed,) = (json.loads(line) for line in done.stdout.splitlines() if line.startswith("{"))
    report = train(with_training(declaration, batch_size=128), output=tmp_path / "one.safetensors", rows=4001)
    assert printed["held_out_auc"] == pytest.approx(report.held_out_auc, abs=1e-3)
    one, two = (load_file(tmp_path / name) for name in ("one.safetensors", "checkpoint.safetensors"))
    for key, weight in one.items():
        assert torch.allclose(two[key], weight, atol=1e-4), key

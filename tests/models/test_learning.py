"""Nets of several kinds learn what a plain DLRM, of no fewer weights and trained the same, learns less well.

Each truth (`support.truths`) asks for one kind of net. Both models train on the same rows, with the same options, and
are judged by the AUC of the same held-out rows, beside what the truth itself reaches there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from support import truths
from support.depth import DEPTH
from support.nets import trusted
from support.truths import Truth

from dlrm_factory import stage, train
from dlrm_factory.config import DenseFeature, DLRMDeclaration, SparseFeature, Table, TrainingOptions
from dlrm_factory.model.model import make_model
from dlrm_factory.scorer import Scorer
from dlrm_factory.tools.metrics.metrics import auc
from dlrm_factory.weights.checkpoint import open_checkpoint

SEEDS = (1, 2, 3) if DEPTH == "deep" else (1,)
# Two or three trainings each, of ten seconds.
deep = pytest.mark.skipif(DEPTH != "deep", reason="trains for half a minute; ./scripts/test --deep runs it")


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    """More threads of so small nets wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=SEEDS)
def seed(request: pytest.FixtureRequest) -> int:
    found: int = request.param
    return found


@dataclass(frozen=True)
class Trained:
    """A trained model's checkpoint and held-out rows; ``logits``: float32 [rows, probabilities]."""

    path: Path
    logits: np.ndarray


@dataclass(frozen=True)
class Trial:
    """Rows of a truth, the first ``rows`` of them to train on, the others held out."""

    truth: Truth
    rows: int
    folder: Path

    def train(self, declaration: DLRMDeclaration, where: np.ndarray | None = None) -> Trained:
        """``where``: mask of the rows of the truth that may be trained on, bool [N]."""
        training = np.arange(len(self.truth)) < self.rows
        data = truths.write(
            self.truth, self.folder / "training.parquet", training if where is None else training & where
        )
        held_out = truths.write(self.truth, self.folder / "held_out.parquet", ~training)
        path = self.folder / f"{len(list(self.folder.iterdir()))}.safetensors"
        train(declaration, output=path, data=[data], held_out=[held_out])
        samples = open_checkpoint(path).held_out
        assert samples is not None
        assert len(samples.logits) == len(self.truth) - self.rows
        return Trained(path, samples.logits)

    def held_out(self, label: str) -> np.ndarray:
        return np.asarray(self.truth.columns[label])[self.rows :]

    def best(self, label: str) -> np.ndarray:
        """True probabilities of the held-out rows."""
        return self.truth.probabilities[label][self.rows :]


def declared(
    name: str, ids: Mapping[str, int], dim: int, training: TrainingOptions, **arguments: Any
) -> DLRMDeclaration:
    """A net of ``tests/models/nets``, a DeepFM or a plain DLRM, over a table of ``ids`` rows for each feature."""
    common: dict[str, Any] = {
        "dense_features": [DenseFeature(name="price")],
        "sparse_features": [SparseFeature(name=feature, table=f"t_{feature}") for feature in ids],
        "tables": [Table(name=f"t_{key}", num_embeddings=n, embedding_dim=dim) for key, n in ids.items()],
        "training": training,
    }
    if name == "dlrm":
        return DLRMDeclaration(**common, **{"dense_arch_layer_sizes": [16, dim], **arguments})
    if name == "deepfm":
        return DLRMDeclaration(architecture="deepfm", **common, **arguments)
    net = trusted(name)
    assert net.module is not None
    architecture = msgspec.structs.replace(net.module, arguments=arguments)
    return msgspec.structs.replace(net, **common, architecture=architecture)


def options(epochs: int, rate: float, sparse_rate: float, batch_size: int = 128) -> TrainingOptions:
    return TrainingOptions(
        label="click",
        batch_size=batch_size,
        epochs=epochs,
        learning_rate=rate,
        sparse_learning_rate=sparse_rate,
        learning_rate_decay="linear",
        evaluate_every=1_000_000,
    )


def net_weights(declaration: DLRMDeclaration) -> int:
    """Number of weights beside the tables."""
    return sum(weight.numel() for weight in make_model(declaration, dense_device="meta").net.parameters())


def sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logits.astype(np.float64)))


def reached(trial: Trial, logits: np.ndarray, label: str = "click") -> tuple[float, float]:
    """AUC of the held-out rows by ``logits``, and by the truth."""
    labels = trial.held_out(label)
    return auc(labels, logits), auc(labels, trial.best(label))


@deep
def test_crosses_learn_interactions_of_order_three(seed: int, tmp_path: Path) -> None:
    trial = Trial(truths.order_three(seed, 15_000), 12_000, tmp_path)
    ids = {"user": 16, "item": 16, "place": 16}
    training = options(8, 0.02, 0.5)
    plain = declared("dlrm", ids, 8, training, over_arch_layer_sizes=[48, 32, 1])
    crosses = declared("dcn_v2", ids, 8, training, layers=2, hidden=16)
    assert net_weights(plain) >= net_weights(crosses)
    found, best = reached(trial, trial.train(crosses).logits[:, 0])
    beside, _ = reached(trial, trial.train(plain).logits[:, 0])
    assert found > beside + 0.03
    assert found > best - 0.03


@deep
def test_deepfm_learns_what_vectors_tell_beside_their_products(seed: int, tmp_path: Path) -> None:
    trial = Trial(truths.by_kind(seed, 19_000), 16_000, tmp_path)
    ids = {f"f_{i}": 40 for i in range(3)}
    training = options(10, 0.02, 0.3)
    plain = declared(
        "dlrm", ids, 4, training, dense_arch_layer_sizes=[8, 4], over_arch_layer_sizes=[24, 14, 1]
    )
    machine = declared("deepfm", ids, 4, training, hidden_layer_size=32, deep_fm_dimension=16)
    assert net_weights(plain) >= net_weights(machine)
    found, best = reached(trial, trial.train(machine).logits[:, 0])
    beside, _ = reached(trial, trial.train(plain).logits[:, 0])
    assert found > beside + 0.05
    assert found > best - 0.15


def test_history_weighted_by_the_target_learns_what_a_sum_hides(seed: int, tmp_path: Path) -> None:
    trial = Trial(truths.in_history(seed, 10_000), 8_000, tmp_path)
    training = msgspec.structs.replace(options(7, 0.01, 0.3), learning_rate_decay="none")
    features = {
        "sparse_features": [
            SparseFeature(name="item", table="t_item", max_length=1),
            SparseFeature(name="history", table="t_item", max_length=20),
        ]
    }
    plain = declared("dlrm", {"item": 40}, 8, training, over_arch_layer_sizes=[32, 16, 1])
    plain = msgspec.structs.replace(plain, **features)
    attention = declared("din", {"item": 40}, 8, training, hidden=16)
    tables = [msgspec.structs.replace(table, pooling="none") for table in attention.tables]
    attention = msgspec.structs.replace(attention, **features, tables=tables)
    assert net_weights(plain) >= net_weights(attention)
    found, best = reached(trial, trial.train(attention).logits[:, 0])
    beside, _ = reached(trial, trial.train(plain).logits[:, 0])
    assert found > beside + 0.05
    assert found > best - 0.1


@deep
def test_purchases_are_learnt_beside_clicks(seed: int, tmp_path: Path) -> None:
    trial = Trial(truths.bought(seed, 18_000), 12_000, tmp_path)
    ids = {"user": 300, "item": 200}
    training = options(4, 0.01, 0.1, batch_size=256)
    both = declared("mmoe", ids, 8, training, experts=3, hidden=16)
    alone = msgspec.structs.replace(training, label="purchase")
    plain = declared("dlrm", ids, 8, alone, over_arch_layer_sizes=[32, 16, 1])
    assert net_weights(plain) >= net_weights(both)
    clicked, bought = trial.held_out("click") == 1, trial.held_out("purchase")
    best_click, best_purchase = trial.best("click"), trial.best("purchase")

    logits = trial.train(both).logits
    of_all = trial.train(plain).logits[:, 0]
    of_clicked = trial.train(plain, where=np.asarray(trial.truth.columns["click"]) == 1).logits[:, 0]

    # A purchase where it was clicked, as the output says.
    found, all_rows, clicked_rows, best = (
        auc(bought[clicked], by[clicked]) for by in (logits[:, 1], of_all, of_clicked, best_purchase)
    )
    # A click with a purchase, over all rows: what a ranking by click * purchase goes by.
    joint, joint_best = auc(bought, sigmoid(logits).prod(axis=1)), auc(bought, best_click * best_purchase)
    assert found > max(all_rows, clicked_rows) + 0.015
    assert found > best - 0.04
    assert joint > auc(bought, of_all)
    assert joint > joint_best - 0.05


@deep
def test_two_towers_learn_a_truth_of_low_rank_and_score_by_their_dot_product(
    seed: int, tmp_path: Path
) -> None:
    trial = Trial(truths.low_rank(seed, 10_000), 8_000, tmp_path)
    training = options(8, 0.02, 0.3)
    towers = declared(
        "two_towers", {"user": 100, "item": 80}, 8, training, user_features=["user"], item_features=["item"]
    )
    click, *sides = towers.all_outputs
    towers = msgspec.structs.replace(
        towers, outputs=[click, *(msgspec.structs.replace(side, size=8) for side in sides)]
    )
    trained = trial.train(towers)
    found, best = reached(trial, trained.logits[:, 0])
    assert found > best - 0.05

    stage(trained.path, tmp_path / "staged")
    scorer = Scorer.load(tmp_path / "staged")
    samples = open_checkpoint(trained.path).held_out
    assert samples is not None
    served = scorer.outputs(samples.batch)
    user, item = (served[:, towers.columns_of(side)] for side in ("user", "item"))
    bias = float(open_checkpoint(trained.path).dense_state()["bias"][0])
    dots = (user.astype(np.float64) * item).sum(axis=1)
    assert np.abs(5 * dots + bias - trained.logits[:, 0]).max() < 1e-5
    # So the nearest items of a user's vector are those with the best scores.
    assert auc(trial.held_out("click"), dots) == pytest.approx(found, abs=1e-4)

"""Models with several outputs, sequences and vectors train as plain PyTorch does, each output on rows that count."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
import torch
from support.nets import trusted
from torch import nn
from torch.nn import functional

from dlrm_factory.config import DLRMDeclaration
from dlrm_factory.errors import ConfigError
from dlrm_factory.model.net import user_module
from dlrm_factory.tools.data.dataset import ClickDataset
from dlrm_factory.tools.data.labels import counts_for
from dlrm_factory.tools.data.source import generate_clicks
from dlrm_factory.tools.metrics.metrics import auc, log_loss
from dlrm_factory.tools.training import train
from dlrm_factory.tools.training.objective import make_objective
from dlrm_factory.weights.checkpoint import open_checkpoint

RATE, SPARSE_RATE = 0.1, 0.5
SGD = {
    "optimizer": "sgd",
    "sparse_optimizer": "sgd",
    "learning_rate": RATE,
    "sparse_learning_rate": SPARSE_RATE,
}
State = dict[str, torch.Tensor]


def ignore(progress) -> None: ...


def clicks_of(declaration: DLRMDeclaration, rows: int) -> ClickDataset:
    return generate_clicks(declaration, rows=rows, write_to=None, observe=ignore).dataset


def weighted(declaration: DLRMDeclaration, **weights: float) -> DLRMDeclaration:
    outputs = [
        msgspec.structs.replace(each, loss_weight=weights.get(each.name, 1.0)) for each in declaration.outputs
    ]
    return msgspec.structs.replace(declaration, outputs=outputs)


class Plain:
    """A model in plain PyTorch: a tensor a table, and the user's module."""

    def __init__(self, declaration: DLRMDeclaration, state: State) -> None:
        self.declaration = declaration
        self.module = user_module(declaration)
        dense = {key: value for key, value in state.items() if not key.startswith("sparse_arch.")}
        self.module.load_state_dict(dense)
        self.tables = {
            table.name: nn.Parameter(
                next(value for key, value in state.items() if key.endswith(f".{table.name}.weight")).clone()
            )
            for table in declaration.tables
        }

    def outputs(self, clicks: ClickDataset, rows: np.ndarray) -> dict[str, torch.Tensor]:
        batch = clicks.features(rows)
        ends = np.cumsum(batch.lengths.reshape(-1))
        starts = (ends - batch.lengths.reshape(-1)).reshape(batch.lengths.shape)
        pooled, sequences, lengths = {}, {}, {}
        for f, feature in enumerate(self.declaration.sparse_features):
            table = self.declaration.table(feature.table)
            bags = [
                self.tables[table.name][torch.from_numpy(batch.values[start : start + length])]
                for start, length in zip(starts[f], batch.lengths[f], strict=True)
            ]
            if table.pooling == "none":
                sequences[feature.name] = nn.utils.rnn.pad_sequence(bags, batch_first=True)
                lengths[feature.name] = torch.from_numpy(batch.lengths[f]).long()
                continue
            pool = {"sum": lambda bag: bag.sum(0), "mean": lambda bag: bag.sum(0) / max(len(bag), 1)}
            pooled[feature.name] = torch.stack([pool[table.pooling](bag) for bag in bags])
        given = {
            "dense": torch.from_numpy(batch.dense),
            "pooled_by_name": pooled,
            "sequences": sequences,
            "lengths": lengths,
        }
        if len({each.shape[1] for each in pooled.values()}) == 1:
            given["pooled"] = torch.stack(list(pooled.values()), dim=1)
        takes = self.module.forward.__code__.co_varnames[1 : self.module.forward.__code__.co_argcount]
        found = self.module(**{name: given[name] for name in takes})
        return found if isinstance(found, dict) else {self.declaration.all_outputs[0].name: found}

    def step(self, loss: torch.Tensor) -> None:
        loss.backward()
        with torch.no_grad():
            for rate, parameters in ((RATE, self.module.parameters()), (SPARSE_RATE, self.tables.values())):
                for each in parameters:
                    if each.grad is not None:
                        each -= rate * each.grad
                        each.grad = None


def purchase_loss(outputs: dict[str, torch.Tensor], labels: np.ndarray) -> torch.Tensor:
    """Loss of click on all rows, and half as much of purchase where it was clicked."""
    click, purchase = torch.from_numpy(labels).unbind(dim=1)
    clicked = click == 1
    assert 0 < clicked.sum() < len(clicked)
    own = functional.binary_cross_entropy_with_logits(outputs["purchase"][clicked], purchase[clicked])
    return functional.binary_cross_entropy_with_logits(outputs["click"], click) + 0.5 * own


def click_loss(outputs: dict[str, torch.Tensor], labels: np.ndarray) -> torch.Tensor:
    name = "click" if "click" in outputs else "score"
    return functional.binary_cross_entropy_with_logits(outputs[name], torch.from_numpy(labels[:, 0]))


@pytest.mark.parametrize(
    ("name", "loss_of"), [("mmoe", purchase_loss), ("two_towers", click_loss), ("din", click_loss)]
)
def test_steps_are_those_of_plain_pytorch(name, loss_of):
    declaration = trusted(name, **SGD)
    if name == "mmoe":
        declaration = weighted(declaration, purchase=0.5)
    clicks = clicks_of(declaration, 120)
    objective = make_objective(declaration)
    plain = Plain(declaration, objective.built.state_dict())
    before = {key: weight.clone() for key, weight in objective.built.state_dict().items()}
    for rows in np.arange(120).reshape(3, 40):
        objective.module.train()
        found = objective.step(objective.batch(clicks, rows))
        loss = loss_of(plain.outputs(clicks, rows), clicks.labels[rows])
        assert found.item() == pytest.approx(loss.item(), abs=1e-5)
        plain.step(loss)
    after = objective.built.state_dict()
    for key, weight in plain.module.state_dict().items():
        assert torch.allclose(after[key], weight, atol=1e-5), key
        assert not torch.equal(after[key], before[key]), key
    for table, weight in plain.tables.items():
        (key,) = (key for key in after if key.endswith(f".{table}.weight"))
        assert torch.allclose(after[key], weight, atol=1e-5), key
        assert not torch.equal(after[key], before[key]), key


def test_an_output_without_a_row_that_counts_adds_nothing():
    declaration = trusted("mmoe", **SGD)
    clicks = clicks_of(declaration, 60)
    rows = np.flatnonzero(clicks.labels[:, 0] == 0)
    objective = make_objective(declaration)
    loss = objective.step(objective.batch(clicks, rows))
    assert torch.isfinite(loss)
    after = objective.built.state_dict()
    fresh = make_objective(declaration).built.state_dict()
    assert torch.equal(after["heads.1.weight"], fresh["heads.1.weight"])
    assert not torch.equal(after["heads.0.weight"], fresh["heads.0.weight"])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    declaration = trusted("mmoe", early_stopping=1, validation=0.1)
    path = tmp_path_factory.mktemp("outputs") / "c.safetensors"
    return declaration, path, train(declaration, output=path, rows=3000)


def test_the_report_has_figures_of_each_output_on_the_rows_that_count(trained):
    _, path, report = trained
    kept = open_checkpoint(path).held_out
    assert kept.labels.shape == kept.logits.shape == (report.held_out_rows, 2)
    assert [each.output for each in report.outputs] == ["click", "purchase"]
    click, purchase = report.outputs
    assert (click.held_out_auc, click.held_out_log_loss) == (report.held_out_auc, report.held_out_log_loss)
    assert click.held_out_rows == report.held_out_rows
    clicked = kept.labels[:, 0] == 1
    assert np.array_equal(kept.labels[:, 1] != 2, clicked)
    assert purchase.held_out_rows == clicked.sum() < click.held_out_rows
    labels, logits = kept.labels[clicked, 1], kept.logits[clicked, 1]
    assert purchase.held_out_auc == pytest.approx(auc(labels, logits), abs=1e-6)
    assert purchase.held_out_log_loss == pytest.approx(log_loss(labels, logits), abs=1e-6)
    assert purchase.best_auc > 0.6
    said = msgspec.json.decode(open_checkpoint(path).metadata["outputs"])
    assert [each["held_out_auc"] for each in said] == [click.held_out_auc, purchase.held_out_auc]


def test_a_run_of_several_outputs_goes_on_bit_by_bit(trained, tmp_path):
    declaration, path, _ = trained
    folder = {"checkpoint_dir": tmp_path / "snapshots"}
    train(declaration, output=tmp_path / "a.safetensors", rows=3000, **folder)
    train(declaration, output=tmp_path / "b.safetensors", rows=3000, **folder, resume=True)
    one, other = open_checkpoint(path), open_checkpoint(tmp_path / "b.safetensors")
    assert np.array_equal(one.held_out.logits, other.held_out.logits)
    assert all(torch.equal(value, other.dense_state()[key]) for key, value in one.dense_state().items())


def test_generated_purchases_are_clicked_first():
    clicks = clicks_of(trusted("mmoe"), 2000)
    counted = counts_for(clicks.labels, 1)
    assert np.array_equal(counted, clicks.labels[:, 0] == 1)
    assert 0.1 < clicks.labels[counted, 1].mean() < 0.5


def test_vectors_alone_cannot_be_trained(tmp_path):
    declaration = trusted("two_towers")
    vectors = [each for each in declaration.outputs if each.kind == "vector"]
    with pytest.raises(ConfigError, match=r"\$\.outputs: has no probability"):
        train(msgspec.structs.replace(declaration, outputs=vectors), output=tmp_path / "c.safetensors")

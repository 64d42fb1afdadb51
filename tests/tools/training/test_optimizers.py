"""Two steps of every optimiser against its formula, on gradients of TorchRec's plain model."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
import torch
from support.batches import random_batch

from dlrm_factory.batch import to_dense, to_keyed_jagged_tensors
from dlrm_factory.config import DLRMDeclaration, TrainingOptions, tiny
from dlrm_factory.model.model import EMBEDDINGS_PREFIX, make_model, state_key, table_weight_key
from dlrm_factory.model.plan import has_fused_optimizer
from dlrm_factory.tools.training.module import TrainingBatch
from dlrm_factory.tools.training.objective import Objective, make_objective

OPTIONS = TrainingOptions(label="click")  # not the preset's, which are tuned

# Of the dense lookup on CPU, whose gradients are right: they are compared here.
pytestmark = pytest.mark.filterwarnings("ignore:fbgemm..dense_embedding_codegen_lookup_function")

RATE, SPARSE_RATE = 0.01, 0.2
ITEM = table_weight_key("t_item_id")
DENSE = "over_arch.model.1.weight"
State = dict[str, torch.Tensor]


def declared(sharding: str = "table_wise", **training) -> DLRMDeclaration:
    base = tiny()
    tables = [msgspec.structs.replace(table, sharding=sharding) for table in base.tables]
    rates = {"learning_rate": RATE, "sparse_learning_rate": SPARSE_RATE}
    options = msgspec.structs.replace(OPTIONS, **(rates | training))
    return msgspec.structs.replace(base, tables=tables, training=options)


def batch_of(declaration: DLRMDeclaration, seed: int) -> TrainingBatch:
    features = random_batch(declaration, 24, seed=seed)
    labels = np.random.default_rng(seed).integers(0, 2, 24).astype(np.float32)
    pooled, sequences = to_keyed_jagged_tensors(features, declaration)
    return TrainingBatch(
        dense=to_dense(features),
        pooled=pooled,
        sequences=sequences,
        labels=torch.from_numpy(labels[:, None]),
    )


def gradients(declaration: DLRMDeclaration, state: State, batch: TrainingBatch) -> State:
    model = make_model(declaration, tables_device="cpu")
    model.load_state_dict(state)
    logits = model(batch.dense, batch.pooled)
    torch.nn.functional.binary_cross_entropy_with_logits(logits, batch.labels).backward()
    return {state_key(name): parameter.grad for name, parameter in model.named_parameters()}


def copy_of(objective: Objective) -> State:
    return {key: weight.clone() for key, weight in objective.built.state_dict().items()}


def step(objective: Objective, batch: TrainingBatch) -> None:
    objective.module.train()
    objective.step(batch)


# The formulas: weight, gradient and what earlier steps left, to the new weight.
def sgd(w, g, memory, t, rate):
    return w - rate * g


def adagrad(w, g, memory, t, rate, epsilon=1e-8):
    memory["sum"] = memory.get("sum", 0) + g**2
    return w - rate * g / (memory["sum"].sqrt() + epsilon)


def row_wise_adagrad(w, g, memory, t, rate):
    memory["sum"] = memory.get("sum", 0) + (g**2).mean(dim=1, keepdim=True)
    return w - rate * g / (memory["sum"].sqrt() + 1e-8)


def adam(w, g, memory, t, rate):
    memory["m"] = 0.9 * memory.get("m", 0) + 0.1 * g
    memory["v"] = 0.999 * memory.get("v", 0) + 0.001 * g**2
    return w - rate * memory["m"] / (1 - 0.9**t) / ((memory["v"] / (1 - 0.999**t)).sqrt() + 1e-8)


def adam_of_rows(w, g, memory, t, rate):
    """Rows that no sample looked up rest, and so does what is remembered of them."""
    seen = g.ne(0).any(dim=1)
    m, v = memory.get("m", torch.zeros_like(g)), memory.get("v", torch.zeros_like(g))
    memory["m"] = torch.where(seen[:, None], 0.9 * m + 0.1 * g, m)
    memory["v"] = torch.where(seen[:, None], 0.999 * v + 0.001 * g**2, v)
    moved = memory["m"] / (1 - 0.9**t) / ((memory["v"] / (1 - 0.999**t)).sqrt() + 1e-8)
    return torch.where(seen[:, None], w - rate * moved, w)


SPARSE = {"sgd": sgd, "adagrad": adagrad, "row_wise_adagrad": row_wise_adagrad, "adam": adam_of_rows}


@pytest.mark.parametrize("sharding", ["table_wise", "row_wise", "data_parallel"])
@pytest.mark.parametrize("name", SPARSE)
def test_two_steps_of_a_table_follow_the_formula(name, sharding):
    declaration = declared(sharding, sparse_optimizer=name)
    objective = make_objective(declaration)
    fused = sharding != "data_parallel" and name != "adam"
    assert {table.kernel for table in objective.built.plan.tables} == {"fused" if fused else "dense"}
    memory: State = {}
    for t in (1, 2):
        before = copy_of(objective)
        batch = batch_of(declaration, seed=t)
        wanted = SPARSE[name](
            before[ITEM], gradients(declaration, before, batch)[ITEM], memory, t, SPARSE_RATE
        )
        step(objective, batch)
        after = copy_of(objective)
        assert not torch.equal(after[ITEM], before[ITEM])
        assert torch.allclose(after[ITEM], wanted, atol=2e-6)


def adagrad_of_torch(w, g, memory, t, rate):
    return adagrad(w, g, memory, t, rate, epsilon=1e-10)


@pytest.mark.parametrize(("name", "formula"), [("sgd", sgd), ("adagrad", adagrad_of_torch), ("adam", adam)])
def test_two_steps_of_the_dense_parts_follow_the_formula(name, formula):
    declaration = declared(optimizer=name)
    objective = make_objective(declaration)
    dense = [key for key in objective.built.state_dict() if EMBEDDINGS_PREFIX not in key]
    memories: dict[str, State] = {key: {} for key in dense}
    for t in (1, 2):
        before = copy_of(objective)
        batch = batch_of(declaration, seed=t)
        found = gradients(declaration, before, batch)
        step(objective, batch)
        after = copy_of(objective)
        for key in dense:
            wanted = formula(before[key], found[key], memories[key], t, RATE)
            assert torch.allclose(after[key], wanted, atol=2e-5), key


@pytest.mark.parametrize("sharding", ["table_wise", "data_parallel"])
def test_a_new_rate_changes_the_next_step_of_everything(sharding):
    declaration = declared(sharding, optimizer="sgd", sparse_optimizer="sgd")
    objective = make_objective(declaration)
    before = copy_of(objective)
    batch = batch_of(declaration, seed=1)
    found = gradients(declaration, before, batch)
    objective.optimizers.set_rates(0.25)
    assert objective.optimizers.rates == (0.25 * RATE, 0.25 * SPARSE_RATE)
    step(objective, batch)
    after = copy_of(objective)
    for key, rate in ((ITEM, SPARSE_RATE), (DENSE, RATE)):
        assert torch.allclose(after[key], before[key] - 0.25 * rate * found[key], atol=1e-6), key


def test_large_dense_gradients_are_scaled_to_the_largest_norm_and_the_tables_are_not():
    declaration = declared(optimizer="sgd", sparse_optimizer="sgd", gradient_clipping=0.01)
    objective = make_objective(declaration)
    before = copy_of(objective)
    batch = batch_of(declaration, seed=1)
    found = gradients(declaration, before, batch)
    step(objective, batch)
    after = copy_of(objective)
    moves = {key: before[key] - after[key] for key in before}
    dense = [key for key in before if EMBEDDINGS_PREFIX not in key]
    norm = torch.cat([moves[key].ravel() for key in dense]).norm() / RATE
    assert norm.item() == pytest.approx(0.01, rel=1e-3)
    assert torch.cat([found[key].ravel() for key in dense]).norm() > 0.02
    assert torch.allclose(moves[ITEM], SPARSE_RATE * found[ITEM], atol=1e-6)


def test_fbgemm_has_no_fused_adam_on_cpu_only():
    assert not has_fused_optimizer(declared(sparse_optimizer="adam"), "cpu")
    assert has_fused_optimizer(declared(sparse_optimizer="adam"), "cuda")
    assert has_fused_optimizer(declared(), "cpu")

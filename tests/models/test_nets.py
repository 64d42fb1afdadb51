"""Models of many kinds, served and sharded, give what NumPy gives by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from support.batches import random_batch
from support.nets import outputs_by_hand, trusted
from support.nets_by_hand import BY_HAND

from dlrm_factory.batch import FeatureBatch, concatenate, split
from dlrm_factory.config import DLRMDeclaration, Output
from dlrm_factory.config.trust import trust_code
from dlrm_factory.errors import WeightsError
from dlrm_factory.factory import DLRMFactory
from dlrm_factory.goldens import Goldens, add_goldens, read_goldens
from dlrm_factory.requests.replay import replay_with
from dlrm_factory.scorer import EAGER_TOLERANCE, Scorer
from dlrm_factory.tools.bench.score import RandomWeights
from dlrm_factory.weights.sealed import seal_weights

ONE_TOWER = """

class OneTower(nn.Module):
    def __init__(self, inputs) -> None:
        super().__init__()
        self.tower = nn.Linear(inputs.pooled["user"], inputs.outputs["user"])

    def forward(self, pooled_by_name):
        return self.tower(pooled_by_name["user"])
"""


def batch_of(declaration: DLRMDeclaration, samples: int) -> FeatureBatch:
    return random_batch(declaration, samples, longest=3, steps=200)


@pytest.fixture(params=sorted(BY_HAND))
def name(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture
def served(name: str, tmp_path: Path) -> tuple[Scorer, RandomWeights]:
    weights = RandomWeights(trusted(name))
    seal_weights(weights, tmp_path)
    add_goldens(tmp_path)
    return Scorer.load(tmp_path), weights


def test_served_outputs_are_those_by_hand_alone_and_in_a_batch(
    name: str, served: tuple[Scorer, RandomWeights], tmp_path: Path
) -> None:
    scorer, weights = served
    batch = batch_of(scorer.declaration, 7)
    expected = outputs_by_hand(name, scorer.declaration, weights, batch)
    assert np.abs(expected).max() > 0.01
    direct = scorer.interact(torch.from_numpy(batch.dense), scorer.look_up(batch))
    alone = np.concatenate([scorer.outputs(sample) for sample in split(batch, 1)])
    for found in (direct, alone, scorer.reference_outputs(batch)):
        assert np.abs(found - expected).max() < 1e-5
    goldens = read_goldens(tmp_path)
    assert goldens is not None


@pytest.mark.parametrize("sharding", ["row_wise", "column_wise", "data_parallel"])
def test_every_sharding_of_sequences_and_pooled_tables_gives_the_same(sharding: Any) -> None:
    declaration = trusted("din")
    weights = RandomWeights(declaration)
    batch = batch_of(declaration, 5)
    expected = outputs_by_hand("din", declaration, weights, batch)
    state = weights.dense_state() | {
        f"sparse_arch.embedding_{kind}.{table.name}.weight": weights.table_rows(
            table.name, 0, table.num_embeddings
        )
        for table in declaration.tables
        for kind in ["collection.embeddings" if table.pooling == "none" else "bag_collection.embedding_bags"]
    }
    tables = [msgspec.structs.replace(table, sharding=sharding) for table in declaration.tables]
    sharded = msgspec.structs.replace(declaration, tables=tables)
    for mode in ("float", "quantized"):
        built = DLRMFactory(sharded).build(mode=mode, weights=state)
        with torch.no_grad():
            found = Scorer(built).reference_outputs(batch)
        assert np.abs(found - expected).max() < 1e-5, mode


def test_golden_requests_of_every_model_are_reproduced(
    served: tuple[Scorer, RandomWeights], tmp_path: Path
) -> None:
    scorer, _ = served
    goldens = read_goldens(tmp_path)
    assert goldens is not None
    asks = len(scorer.declaration.all_outputs) > 1
    assert all((golden.outputs is not None) == asks for golden in goldens.requests)
    assert replay_with(scorer, goldens, EAGER_TOLERANCE) < 1e-5


def test_a_wrong_number_among_several_outputs_is_found(tmp_path: Path) -> None:
    seal_weights(RandomWeights(trusted("two_towers")), tmp_path)
    goldens = add_goldens(tmp_path)
    first, *others = goldens.requests
    assert first.outputs is not None
    vector = first.outputs["item"]
    assert isinstance(vector, list)
    wrong = first.outputs | {"item": [*vector[:-1], vector[-1] + 0.01]}
    spoilt = Goldens(requests=[msgspec.structs.replace(first, outputs=wrong), *others])
    with pytest.raises(WeightsError, match="golden request 1 of 16"):
        replay_with(Scorer.load(tmp_path), spoilt, EAGER_TOLERANCE)


def test_a_model_of_one_vector_has_golden_requests_too(tmp_path: Path) -> None:
    towers = trusted("two_towers")
    assert towers.module is not None
    code = towers.module.sources["two_towers.py"] + ONE_TOWER  # type: ignore[index]
    module = msgspec.structs.replace(
        towers.module, module="two_towers.py:OneTower", arguments={}, sources={"two_towers.py": code}
    )
    outputs = [Output(name="user", kind="vector", size=6)]
    declaration = msgspec.structs.replace(towers, architecture=module, outputs=outputs)
    trust_code(declaration)
    seal_weights(RandomWeights(declaration), tmp_path)
    goldens = add_goldens(tmp_path)
    assert all(golden.expected is None and golden.outputs is not None for golden in goldens.requests)
    assert replay_with(Scorer.load(tmp_path), goldens, EAGER_TOLERANCE) < 1e-5


def test_a_module_that_reads_past_the_lengths_is_refused(tmp_path: Path) -> None:
    din = trusted("din")
    assert din.module is not None
    assert din.module.sources is not None
    # T is that of the longest history of the batch.
    careless = din.module.sources["din.py"].replace(
        "(self.attention(pairs) * inside * history).sum(dim=1)",
        "target[:, 0] * history.shape[1]",
    )
    assert careless != din.module.sources["din.py"]
    module = msgspec.structs.replace(din.module, sources=din.module.sources | {"din.py": careless})
    declaration = msgspec.structs.replace(din, architecture=module)
    trust_code(declaration)
    seal_weights(RandomWeights(declaration), tmp_path)
    with pytest.raises(WeightsError, match=r"din\.py:DIN: golden sample .* mask by lengths"):
        add_goldens(tmp_path)


def test_batches_join(tmp_path: Path) -> None:
    declaration = trusted("din")
    parts = [batch_of(declaration, 3), batch_of(declaration, 2)]
    seal_weights(RandomWeights(declaration), tmp_path)
    scorer = Scorer.load(tmp_path)
    apart = np.concatenate([scorer.outputs(part) for part in parts])
    assert np.abs(scorer.outputs(concatenate(parts)) - apart).max() < 1e-5

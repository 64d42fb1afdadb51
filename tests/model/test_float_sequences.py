"""Sequence tables in training give and learn what TorchRec's plain EmbeddingCollection does, by every lookup."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from torchrec.modules.embedding_configs import EmbeddingConfig
from torchrec.modules.embedding_modules import EmbeddingCollection

from dlrm_factory.batch import FeatureBatch, to_keyed_jagged_tensors
from dlrm_factory.config import DLRMDeclaration, ModuleArchitecture, tiny
from dlrm_factory.config.trust import TRUST_VARIABLE, trust_code
from dlrm_factory.factory import DLRMFactory
from dlrm_factory.weights.loading import float_shards

CODE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.one = nn.Parameter(torch.ones(1))

    def forward(self, sequences):
        return sum(vectors.pow(2).sum((1, 2)) for vectors in sequences.values()) * self.one
"""
BATCH = FeatureBatch(
    dense=np.zeros((3, 2), np.float32),
    lengths=np.array([[1, 0, 2], [0, 0, 0], [3, 1, 0]], np.int32),
    values=np.array([5, 7, 5, 1, 2, 1, 9]),
)


def declared(**table: Any) -> DLRMDeclaration:
    found = msgspec.structs.replace(
        tiny(),
        architecture=ModuleArchitecture(module="net.py:Net", sources={"net.py": CODE}),
        dense_arch_layer_sizes=None,
        over_arch_layer_sizes=None,
        tables=[msgspec.structs.replace(each, pooling="none", **table) for each in tiny().tables],
    )
    trust_code(found)
    return found


@pytest.mark.filterwarnings("ignore:fbgemm..dense_embedding_codegen_lookup_function")
@pytest.mark.parametrize("sharding", ["table_wise", "row_wise", "data_parallel"])
def test_vectors_and_gradients_are_torchrecs(sharding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TRUST_VARIABLE, "")
    declaration = declared(sharding=sharding)
    # Adam has no fused lookup on CPU, so all of them are dense.
    training = msgspec.structs.replace(declaration.training, sparse_optimizer="adam")
    declaration = msgspec.structs.replace(declaration, training=training)
    built = DLRMFactory(declaration).build(mode="float")
    state = built.state_dict()
    plain = EmbeddingCollection(
        tables=[
            EmbeddingConfig(
                name=table.name,
                num_embeddings=table.num_embeddings,
                embedding_dim=table.embedding_dim,
                feature_names=declaration.features_of(table.name),
            )
            for table in declaration.tables
        ]
    )
    prefix = "sparse_arch.embedding_collection."
    plain.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
    pooled, sequences = to_keyed_jagged_tensors(BATCH, declaration)
    assert sequences is not None
    logits = built.model(torch.zeros(3, 2), pooled, sequences)[:, 0]
    expected = plain(sequences)
    squares = torch.stack(
        [
            sum(
                part.pow(2).sum()
                for part in (expected[name].to_dense()[i] for name in declaration.sparse_names)
            )
            for i in range(3)
        ]
    )
    assert torch.allclose(logits, squares)
    logits.sum().backward()
    squares.sum().backward()
    for table in declaration.tables:
        (shard,) = [shard for shard in _gradients(built.model) if shard[0] == table.name]
        assert torch.allclose(shard[1], plain.embeddings[table.name].weight.grad)


def _gradients(model: torch.nn.Module) -> list[tuple[str, torch.Tensor]]:
    found = []
    for shard in float_shards(model):
        whole = shard.lookup.weights
        start = shard.weight.storage_offset() - whole.storage_offset()
        gradient = whole.grad.view(-1)[start : start + shard.weight.numel()]
        found.append((shard.table, gradient.view(shard.weight.shape)))
    return found

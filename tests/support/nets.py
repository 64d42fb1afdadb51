"""Declarations of dense nets of several kinds, their code beside them in ``tests/models/nets``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from dlrm_factory.batch import FeatureBatch, split
from dlrm_factory.config import DLRMDeclaration, read_declaration
from dlrm_factory.config.trust import trust_code
from dlrm_factory.tools.bench.score import RandomWeights
from support.nets_by_hand import BY_HAND

__all__ = ["NETS", "outputs_by_hand", "trusted"]

NETS = Path(__file__).resolve().parents[1] / "models" / "nets"


def trusted(name: str, **training: Any) -> DLRMDeclaration:
    """The declaration ``name``, whose code this process, and those that it starts, may run from now on.

    ``training``: changes of its training options.
    """
    declaration = read_declaration(NETS / f"{name}.yaml")
    trust_code(declaration)
    options = msgspec.structs.replace(declaration.training, **training)
    return msgspec.structs.replace(declaration, training=options)


def outputs_by_hand(
    name: str, declaration: DLRMDeclaration, weights: RandomWeights, batch: FeatureBatch
) -> np.ndarray:
    """All outputs' columns, [B, C], in float64, of the declaration ``name`` with ``weights``."""
    dense = {key: tensor.double().numpy() for key, tensor in weights.dense_state().items()}
    tables = {
        table.name: weights.table_rows(table.name, 0, table.num_embeddings).double().numpy()
        for table in declaration.tables
    }
    pooling = {f.name: declaration.table(f.table).pooling for f in declaration.sparse_features}
    found = []
    for sample in split(batch, 1):
        ends = np.cumsum(sample.lengths[:, 0])
        vectors = {
            feature.name: tables[feature.table][sample.values[end - length : end]]
            for feature, end, length in zip(
                declaration.sparse_features, ends, sample.lengths[:, 0], strict=True
            )
        }
        outputs = BY_HAND[name](dense, sample.dense[0].astype(np.float64), vectors, pooling)
        found.append(np.concatenate([np.reshape(outputs[o.name], -1) for o in declaration.all_outputs]))
    return np.stack(found)

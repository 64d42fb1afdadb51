"""Random batches and weights for a declaration."""

from __future__ import annotations

import msgspec
import numpy as np
import torch

from dlrm_factory.batch import FeatureBatch, to_dense, to_keyed_jagged_tensors
from dlrm_factory.config import DLRMDeclaration
from dlrm_factory.model.dtypes import decode_rows, encode_rows
from dlrm_factory.model.model import EMBEDDINGS_PREFIX, make_model, table_weight_key


def uncompiled(declaration: DLRMDeclaration) -> DLRMDeclaration:
    """``declaration``, served eagerly: no compiler beside the test, and no code that takes over in its middle."""
    return msgspec.structs.replace(
        declaration, serving=msgspec.structs.replace(declaration.serving, compile="off")
    )


def random_batch(
    declaration: DLRMDeclaration, size: int, *, seed: int = 0, longest: int = 4, steps: int = 9
) -> FeatureBatch:
    """``size`` samples with bags of 0 to ``longest`` ids, and sequences of 0 to ``steps``, as many as they may have.

    With weights where the model takes them.
    """
    random = np.random.default_rng(seed)
    features = declaration.sparse_features
    lengths = random.integers(0, longest + 1, size=(len(features), size)).astype(np.int32)
    for feature in declaration.sequence_features:
        most = min(steps, feature.max_length)
        lengths[declaration.sparse_names.index(feature.name)] = random.integers(0, most + 1, size=size)
    values = [
        random.integers(0, declaration.table(feature.table).num_embeddings, size=int(row.sum()))
        for feature, row in zip(features, lengths, strict=True)
    ]
    return FeatureBatch(
        dense=random.normal(size=(size, len(declaration.dense_features))).astype(np.float32),
        lengths=lengths,
        values=np.concatenate(values).astype(np.int64),
        weights=_random_weights(declaration, lengths, random) if declaration.is_weighted else None,
    )


def _random_weights(
    declaration: DLRMDeclaration, lengths: np.ndarray, random: np.random.Generator
) -> np.ndarray:
    """Weights of the weighted features' ids; 1 for all others."""
    parts = [
        random.uniform(-1, 2, size=int(row.sum())) if feature.weighted else np.ones(int(row.sum()))
        for feature, row in zip(declaration.sparse_features, lengths, strict=True)
    ]
    return np.concatenate(parts).astype(np.float32)


def random_state(declaration: DLRMDeclaration, *, seed: int = 5) -> dict[str, torch.Tensor]:
    """A state dict whose logits are of the order of 1, so that a wrong row or rank changes every score."""
    generator = torch.Generator().manual_seed(seed)
    shapes = make_model(declaration, dense_device="meta").state_dict()
    return {key: _random_weight(key, value.shape, generator) for key, value in shapes.items()}


def _random_weight(key: str, shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    is_layer = len(shape) == 2 and not key.startswith(EMBEDDINGS_PREFIX)
    return torch.randn(shape, generator=generator) * (1.4 * shape[1] ** -0.5 if is_layer else 0.3)


def unsharded_logits(
    declaration: DLRMDeclaration, state: dict[str, torch.Tensor], batch: FeatureBatch, *, quantized: bool
) -> np.ndarray:
    """TorchRec's plain model, no sharding, on fp32 tables that hold the encoded rows' values."""
    tables = {
        table_weight_key(table.name): decode_rows(
            encode_rows(state[table_weight_key(table.name)], table.dtype), table.dtype
        )
        for table in declaration.tables
        if quantized
    }
    if declaration.is_weighted:
        return _weighted_logits(declaration, {**state, **tables}, batch)
    model = make_model(declaration, tables_device="cpu")
    model.load_state_dict({**state, **tables})
    with torch.no_grad():
        logits = model(to_dense(batch), *to_keyed_jagged_tensors(batch, declaration))
    return logits.reshape(-1).numpy()


def _weighted_logits(
    declaration: DLRMDeclaration, state: dict[str, torch.Tensor], batch: FeatureBatch
) -> np.ndarray:
    """The plain model over bags pooled here, id by id: a sum of weight times row, or the mean of the rows."""
    model = make_model(declaration, tables_device="cpu")
    model.load_state_dict(state)
    pooled = {}
    at = 0
    for feature, lengths in zip(declaration.sparse_features, batch.lengths.tolist(), strict=True):
        table = declaration.table(feature.table)
        weight = state[table_weight_key(table.name)]
        vectors = torch.zeros(len(batch), table.embedding_dim)
        for sample, length in enumerate(lengths):
            for place in range(at, at + length):
                factor = float(batch.weights[place]) if table.pooling == "sum" else 1 / length
                vectors[sample] += factor * weight[batch.values[place]]
            at += length
        pooled[feature.name] = vectors
    order = [name for table in declaration.tables for name in declaration.features_of(table.name)]
    with torch.no_grad():
        sparse = torch.stack([pooled[name] for name in order], dim=1)
        net = model.net.module
        logits = net.over_arch(net.inter_arch(net.dense_arch(to_dense(batch)), sparse))
    return logits.reshape(-1).numpy()

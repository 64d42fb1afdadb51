"""Models with sequences whose steps count by their order, under every sharding."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import numpy as np

from dlrm_factory.batch import FeatureBatch
from dlrm_factory.config import (
    DenseFeature,
    DLRMDeclaration,
    ModuleArchitecture,
    Output,
    SparseFeature,
    Table,
    tiny,
)
from dlrm_factory.config.trust import trust_code
from support.nets import trusted
from support.sharding import SHARDINGS

__all__ = ["BODIES", "MAX_STEPS", "even_batch", "ordered", "sequence_cases", "with_shardings"]

# A step's vector counts by its place, and so does each column: a vector elsewhere, or turned, changes both outputs.
ORDERED = """
import torch
from torch import nn

class Ordered(nn.Module):
    def __init__(self, inputs):
        super().__init__()
        width = len(inputs.dense) + sum(inputs.pooled.values())
        width += sum(dim + 1 for dim in inputs.sequences.values())
        self.click, self.vector = nn.Linear(width, 1), nn.Linear(width, 3)

    def forward(self, dense, pooled_by_name, sequences, lengths):
        parts = [dense, *pooled_by_name.values()]
        for name, vectors in sequences.items():
            factors = 1 / torch.arange(1, vectors.shape[1] + 1, device=vectors.device)
            parts.append((vectors * factors.unsqueeze(1)).sum(dim=1))
            parts.append(lengths[name].unsqueeze(1) * 0.01)
        features = torch.cat(parts, dim=1)
        return {"click": self.click(features).squeeze(1), "vector": self.vector(features)}
"""
MAX_STEPS = 300  # steps of a history: lengths of two bytes
BODIES = (
    ({"instances": [{"price": 1, "history": [9, 2, 11], "user": 3}, {"item": 7, "tags": [1, 2]}]}, {}),
    ({"instances": [{"history": list(range(99)), "item": 5}], "outputs": ["click", "vector"]}, {}),
    (
        {
            "context": {"price": 2, "history": [5, 4, 3, 2], "user": 17},
            "candidates": [{"id": f"sku-{i}", "item": i, "category": [i % 10, 3]} for i in range(150)],
        },
        {},
    ),
)


def ordered(
    shardings: tuple[str, str, str, str], *, pooled: bool = True, weighted: bool = False
) -> DLRMDeclaration:
    """Three sequences, two of one table; beside two pooled features, with ``pooled``, of other ``embedding_dim``.

    ``shardings``: of the tables of items, categories, users and tags.
    """
    features = [
        SparseFeature(name="history", table="t_item", max_length=MAX_STEPS),
        SparseFeature(name="item", table="t_item", max_length=1),
        SparseFeature(name="user", table="t_user", weighted=weighted),
        SparseFeature(name="category", table="t_category", max_length=MAX_STEPS),
        SparseFeature(name="tags", table="t_tags"),
    ]
    tables = [
        Table(name="t_item", num_embeddings=300, embedding_dim=8, pooling="none", dtype="int8"),
        Table(name="t_category", num_embeddings=10, embedding_dim=8, pooling="none", dtype="fp16"),
        Table(name="t_user", num_embeddings=120, embedding_dim=4),
        Table(name="t_tags", num_embeddings=120, embedding_dim=16, pooling="mean", dtype="int4"),
    ]
    tables = [msgspec.structs.replace(t, sharding=s) for t, s in zip(tables, shardings, strict=True)]
    used = {table.name for table in tables if pooled or table.pooling == "none"}
    declaration = msgspec.structs.replace(
        tiny(),
        architecture=ModuleArchitecture(module="ordered.py:Ordered", sources={"ordered.py": ORDERED}),
        dense_arch_layer_sizes=None,
        over_arch_layer_sizes=None,
        outputs=[Output(name="click", label="click"), Output(name="vector", kind="vector", size=3)],
        dense_features=[DenseFeature(name="price")],
        sparse_features=[feature for feature in features if feature.table in used],
        tables=[table for table in tables if table.name in used],
    )
    trust_code(declaration)
    return declaration


def with_shardings(declaration: DLRMDeclaration, *shardings: str) -> DLRMDeclaration:
    """``declaration`` with the tables under ``shardings``, which take turns."""
    tables = [
        msgspec.structs.replace(table, sharding=shardings[i % len(shardings)])
        for i, table in enumerate(declaration.tables)
    ]
    return msgspec.structs.replace(declaration, tables=tables)


def sequence_cases(size: int) -> Iterator[tuple[str, DLRMDeclaration]]:
    """(name, declaration): tables of one kind, beside pooled ones and alone; of each kind one; nets of several kinds.

    Those alone, and those with weights, take turns, others for each size.
    """
    for i, sharding in enumerate(SHARDINGS):
        yield f"sequences-{sharding}", ordered((sharding,) * 4)
        if (i + size) % 2:
            yield f"sequences-alone-{sharding}", ordered((sharding,) * 4, pooled=False)
    turns = SHARDINGS[:4]
    for i in range(4):
        shardings = (*turns[i:], *turns[:i])
        yield f"sequences-mixed-{i}", ordered(shardings)  # type: ignore[arg-type]
        if (i + size) % 2:
            yield f"sequences-weighted-{i}", ordered(shardings, weighted=True)  # type: ignore[arg-type]
    yield "din", with_shardings(trusted("din"), "row_wise", "table_wise")
    yield "shared-towers", with_shardings(trusted("shared_towers"), "table_wise", "row_wise")


def even_batch(declaration: DLRMDeclaration, ranks: int) -> FeatureBatch:
    """Slices of 12 samples whose ids are spread evenly over the rows of each table of `ordered`."""
    place = np.arange(12)
    of_feature = {
        "history": np.tile(25 * place, (12, 1)) + 2 * place[:, None],
        "item": 25 * place[:, None],
        "user": 10 * place[:, None],
        "category": np.tile(np.arange(10), (12, 1)),
        "tags": np.stack([10 * place, 10 * place + 5], axis=1),
    }
    ids = [np.tile(of_feature[feature.name], (ranks, 1)) for feature in declaration.sparse_features]
    values = np.concatenate([each.reshape(-1) for each in ids])
    return FeatureBatch(
        dense=np.zeros((12 * ranks, len(declaration.dense_features)), dtype=np.float32),
        lengths=np.stack([np.full(12 * ranks, each.shape[1], dtype=np.int32) for each in ids]),
        values=values,
        weights=np.ones(len(values), dtype=np.float32) if declaration.is_weighted else None,
    )

"""A model of several outputs whose numbers can be checked by hand, behind a service."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import numpy as np

from dlrm_factory.batch import FeatureBatch, SharedContext, tile_context
from dlrm_factory.config import (
    DenseFeature,
    DLRMDeclaration,
    ModuleArchitecture,
    Output,
    ServingOptions,
    SparseFeature,
    Table,
)
from dlrm_factory.requests.answers import Answer
from dlrm_factory.requests.service import DLRMService
from support.handed import handle

__all__ = ["CLICK", "PURCHASE", "TOWER", "ByHand", "ask", "content", "declared", "sigmoid"]

CLICK, PURCHASE, TOWER = (
    Output(name="click", label="click"),
    Output(name="purchase", label="purchase", where="click"),
    Output(name="tower", kind="vector", size=3),
)


def declared(*outputs: Output, **serving: Any) -> DLRMDeclaration:
    """A module's declaration; ``history`` is a sequence."""
    return DLRMDeclaration(
        architecture=ModuleArchitecture(module="my_net.py:MyNet", arguments={"hidden": 8}),
        outputs=list(outputs),
        dense_features=[
            DenseFeature(name="price", default=2.0, transform="log1p"),
            DenseFeature(name="age-days"),
        ],
        sparse_features=[
            SparseFeature(name="item", table="t_item"),
            SparseFeature(name="history", table="t_history", max_length=3, over_max_length="truncate"),
        ],
        tables=[
            Table(name="t_item", num_embeddings=100, embedding_dim=8),
            Table(name="t_history", num_embeddings=100, embedding_dim=8, pooling="none"),
        ],
        serving=ServingOptions(**{"max_samples": 40, "batch_size": 8, **serving}),
    )


class ByHand:
    """click's logit is item / 10, purchase's that less 1; tower is [history's length, its sum, item]."""

    def __init__(self, declaration: DLRMDeclaration) -> None:
        self.declaration = declaration
        self.spoilt: dict[str, float] = {}  # output → what it is where item is 13

    def outputs(self, batch: FeatureBatch, shared: SharedContext | None = None) -> np.ndarray:
        if shared is not None:
            batch = tile_context(batch, shared)
        starts = np.concatenate(([0], np.cumsum(batch.lengths)))
        sums = np.array([batch.values[a:b].sum() for a, b in pairwise(starts)], dtype=np.float32)
        item, history = sums.reshape(2, len(batch))
        columns = {
            "click": item[:, None] / 10,
            "purchase": item[:, None] / 10 - 1,
            "tower": np.stack([batch.lengths[1], history, item], axis=1) * np.float32(0.1),
        }
        for name, value in self.spoilt.items():
            columns[name] = np.where(item[:, None] == 13, value, columns[name])
        parts = [columns[output.name] for output in self.declaration.all_outputs]
        return np.concatenate(parts, axis=1).astype(np.float32)


def sigmoid(logit: float) -> float:
    return float(1 / (1 + np.exp(-logit)))


def ask(service: DLRMService, *bodies: Any, **headers: Any) -> list[Answer]:
    raws = [{"body": bytearray(json.dumps(body).encode())} for body in bodies]
    return handle(service, raws, [headers] * len(bodies))


def content(service: DLRMService, body: Any, **headers: Any) -> Any:
    (answer,) = ask(service, body, **headers)
    assert answer.status == 200, answer.body
    return json.loads(answer.body)

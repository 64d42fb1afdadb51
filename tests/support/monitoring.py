"""Samples like those that training held out, the reference made of them, and a service that counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from dlrm_factory.batch import FeatureBatch, SharedContext
from dlrm_factory.config import DenseFeature, DLRMDeclaration, ServingOptions, SparseFeature, Table
from dlrm_factory.monitoring.reference import Reference
from dlrm_factory.requests.instrumenting import instrument
from dlrm_factory.requests.observing import ServiceObserver
from dlrm_factory.requests.service import DLRMService
from dlrm_factory.tools.archive.reference import make_reference
from dlrm_factory.weights.held_out import HeldOut

NOW = 6_000_000.0

DECLARATION = DLRMDeclaration(
    architecture="dlrm",
    dense_arch_layer_sizes=[16, 8],
    over_arch_layer_sizes=[16, 1],
    dense_features=[DenseFeature(name="price"), DenseFeature(name="age", default=30.0)],
    sparse_features=[
        SparseFeature(name="user", table="users", ids="hash"),
        SparseFeature(name="item", table="items"),
        SparseFeature(name="tags", table="tags", max_length=3, over_max_length="truncate"),
    ],
    tables=[
        Table(name="users", num_embeddings=50_000, embedding_dim=8),
        Table(name="items", num_embeddings=500, embedding_dim=8),
        Table(name="tags", num_embeddings=20, embedding_dim=8),
    ],
    serving=ServingOptions(max_samples=1000),
)


class DenseScorer:
    """logit = price."""

    declaration = DECLARATION

    def logits(self, batch: FeatureBatch, shared: SharedContext | None = None) -> np.ndarray:
        return batch.dense[:, 0].copy()

    def outputs(self, batch: FeatureBatch, shared: SharedContext | None = None) -> np.ndarray:
        return self.logits(batch, shared)[:, None]


def columns(size: int, seed: int) -> dict[str, list[Any]]:
    """Raw values by feature of ``size`` samples, always of the same distribution: popular ids and rare ones."""
    random = np.random.default_rng(seed)
    lengths = random.integers(0, 4, size)
    return {
        "price": random.normal(-2, 1, size).round(4).tolist(),
        "age": np.where(random.random(size) < 0.5, 30.0, random.integers(18, 80, size)).tolist(),
        "user": (random.pareto(0.7, size) * 100).astype(np.int64).tolist(),
        "item": (499 * random.random(size) ** 3).astype(np.int64).tolist(),
        "tags": [(20 * random.random(n) ** 2).astype(np.int64).tolist() for n in lengths],
    }


def rows(size: int, seed: int) -> list[dict[str, Any]]:
    """The same, sample by sample."""
    by_name = columns(size, seed)
    return [dict(zip(by_name, values, strict=True)) for values in zip(*by_name.values(), strict=True)]


def reference_of(samples: int = 20_000, seed: int = 0) -> Reference:
    """Reference of so many `columns`."""
    from dlrm_factory.features import FeatureEncoder

    batch = FeatureEncoder(DECLARATION).encode(columns(samples, seed), samples)
    logits = DenseScorer().logits(batch)
    labels = (np.random.default_rng(seed).random(samples) < 1 / (1 + np.exp(-logits))).astype(np.uint8)
    reference = make_reference(
        HeldOut(batch=batch, labels=labels[:, None], logits=logits[:, None]), DECLARATION
    )
    assert reference is not None
    return reference


def counted_service(
    folder: Path,
    *,
    reference: Reference | None = None,
    declaration: DLRMDeclaration = DECLARATION,
    version: str = "1.0",
    **facts: Any,
) -> tuple[DLRMService, ServiceObserver]:
    """A service whose observer writes into ``folder`` when it is flushed; the time is `NOW`."""
    scorer = DenseScorer()
    scorer.declaration = msgspec.structs.replace(declaration)
    service = DLRMService(scorer, model_name="shop", model_version=version)
    facts = {"engine": lambda: "eager", "clock": lambda: NOW, **facts}
    return service, instrument(service, declaration, files=folder, reference=reference, **facts)

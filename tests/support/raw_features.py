"""A declaration with every kind of feature: vocabularies, weights, statistics, trimmed bags."""

from __future__ import annotations

import msgspec

from dlrm_factory.config import DenseFeature, DLRMDeclaration, SparseFeature, Table, tiny
from dlrm_factory.features import Vocabularies, build_vocabularies
from dlrm_factory.features.ids import canonical_int

USERS = [*(f"user_{i}" for i in range(20)), *range(10)]
ITEMS = [f"item_{i}" for i in range(25)]


def raw_declaration(*, fitted: bool = True) -> DLRMDeclaration:
    """The tiny model over raw features; ``fitted`` with mean and std, as training leaves it."""
    statistics = {"mean": 1.5, "std": 0.7} if fitted else {}
    base = tiny()
    return msgspec.structs.replace(
        base,
        dense_features=[
            DenseFeature(
                name="price", default=5.0, clip=(0.0, 100.0), transform="log1p_standardize", **statistics
            ),
            DenseFeature(name="hour", default=12.0, transform="standardize", **statistics),
            DenseFeature(name="visits", clip=(0.0, 50.0)),
        ],
        sparse_features=[
            SparseFeature(name="user", table="t_user", ids="vocabulary", out_of_vocabulary=4, max_length=1),
            SparseFeature(
                name="item", table="t_item", ids="vocabulary", out_of_vocabulary="error", max_length=1
            ),
            SparseFeature(
                name="seen",
                table="t_item",
                ids="vocabulary",
                out_of_vocabulary="drop",
                weighted=True,
                max_length=3,
                over_max_length="truncate",
            ),
            SparseFeature(name="tags", table="t_tags", max_length=8),
        ],
        tables=[
            Table(name="t_user", num_embeddings=40, embedding_dim=8, dtype="int8"),
            Table(name="t_item", num_embeddings=30, embedding_dim=8, dtype="fp16"),
            Table(name="t_tags", num_embeddings=50, embedding_dim=8, pooling="mean"),
        ],
    )


def raw_vocabularies() -> Vocabularies:
    """Vocabularies of `raw_declaration`: USERS and ITEMS."""
    return build_vocabularies({"t_user": USERS, "t_item": ITEMS})


def canonical(raw: int | str) -> int | str:
    """The id that ``raw`` stands for: an int64 where its text is one."""
    number = canonical_int(raw) if isinstance(raw, str) else raw
    return raw if number is None else number

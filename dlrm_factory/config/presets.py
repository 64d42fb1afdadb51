"""Ready declarations: ``tiny`` (tests), ``demo`` (a shop's ranking), ``criteo`` (upstream's shape)."""

from __future__ import annotations

from collections.abc import Callable

from dlrm_factory.config.declaration import DenseFeature, DLRMDeclaration, SparseFeature, Table, TableDtype
from dlrm_factory.config.options import ServingOptions, TrainingOptions
from dlrm_factory.errors import ConfigError, near_matches

__all__ = ["CRITEO_NUM_EMBEDDINGS", "PRESETS", "criteo", "demo", "preset", "tiny"]

# Rows of the 26 tables of pytorch/serve's DLRM example (the Criteo 1TB click logs).
CRITEO_NUM_EMBEDDINGS = (
    45833188, 36746, 17245, 7413, 20243, 3, 7114, 1441, 62, 29275261, 1572176, 345138, 10,
    2209, 11267, 128, 4, 974, 14, 48937457, 11316796, 40094537, 452104, 12606, 104, 35,
)  # fmt: skip


def tiny() -> DLRMDeclaration:
    """Two dense and three sparse features, one multi-valued; for tests and first steps."""
    return DLRMDeclaration(
        dense_arch_layer_sizes=[16, 8],
        over_arch_layer_sizes=[16, 1],
        dense_features=[
            DenseFeature(name="price"),
            DenseFeature(name="age_days", default=30.0, transform="log1p"),
        ],
        sparse_features=[
            SparseFeature(name="user_id", table="t_user_id", ids="hash"),
            SparseFeature(name="item_id", table="t_item_id"),
            SparseFeature(name="item_tags", table="t_item_tags", max_length=8),
        ],
        tables=[
            Table(name="t_user_id", num_embeddings=1000, embedding_dim=8),
            Table(name="t_item_id", num_embeddings=200, embedding_dim=8),
            Table(name="t_item_tags", num_embeddings=50, embedding_dim=8, pooling="mean"),
        ],
        serving=ServingOptions(compile="off"),  # so small a model gains nothing
        training=TrainingOptions(
            label="click", batch_size=256, learning_rate=0.01, learning_rate_decay="linear"
        ),
    )


def demo() -> DLRMDeclaration:
    """A shop's ranking: who asks, in which context, for which item."""
    sparse: list[tuple[str, int, TableDtype]] = [
        ("user_id", 20_000, "int8"),
        ("user_segments", 400, "fp16"),
        ("country", 100, "fp32"),
        ("device", 50, "fp32"),
        ("item_id", 10_000, "int8"),
        ("item_category", 600, "fp16"),
        ("item_tags", 4_000, "int8"),
    ]
    many = {"user_segments", "item_tags"}
    return DLRMDeclaration(
        dense_arch_layer_sizes=[64, 32],
        over_arch_layer_sizes=[128, 64, 1],
        dense_features=[
            DenseFeature(name="user_visits", transform="log1p"),
            DenseFeature(name="hour", default=12.0),
            DenseFeature(name="item_price", transform="log1p"),
            DenseFeature(name="item_age_days", default=30.0, transform="log1p"),
        ],
        sparse_features=[
            SparseFeature(name=name, table=f"t_{name}", ids="hash", max_length=20 if name in many else 1)
            for name, _, _ in sparse
        ],
        tables=[
            Table(
                name=f"t_{name}",
                num_embeddings=rows,
                embedding_dim=32,
                pooling="mean" if name in many else "sum",
                dtype=dtype,
            )
            for name, rows, dtype in sparse
        ],
        training=TrainingOptions(
            label="click",
            batch_size=2048,
            learning_rate=0.01,
            learning_rate_decay="linear",
            evaluate_every=200,
        ),
    )


def criteo(*, cap: int | None = None, raw: bool = False, dtype: TableDtype = "int8") -> DLRMDeclaration:
    """The Criteo click logs: 13 dense I1..I13, 26 sparse C1..C26, embedding_dim 64.

    Args:
        cap: the most rows of a table; None keeps the full counts (178 million rows, 12.1 GB in int8).
        raw: False takes ids that are rows already and prepared dense numbers (upstream's request shape);
            True takes the raw columns: category strings are hashed, counts go through log1p.
        dtype: how the tables are stored for serving.
    """
    if cap is not None and cap < 1:
        raise ConfigError([f"cap: {cap} is not a positive number of rows"])
    rows = [min(n, cap) if cap else n for n in CRITEO_NUM_EMBEDDINGS]
    return DLRMDeclaration(
        dense_arch_layer_sizes=[512, 256, 64],
        over_arch_layer_sizes=[512, 512, 256, 1],
        dense_features=[
            DenseFeature(name=f"I{i}", transform="log1p" if raw else "none") for i in range(1, 14)
        ],
        sparse_features=[
            SparseFeature(name=f"C{i}", table=f"t_C{i}", ids="hash" if raw else "index") for i in range(1, 27)
        ],
        tables=[
            Table(name=f"t_C{i}", num_embeddings=n, embedding_dim=64, dtype=dtype)
            for i, n in enumerate(rows, start=1)
        ],
    )


PRESETS: dict[str, Callable[[], DLRMDeclaration]] = {"tiny": tiny, "demo": demo, "criteo": criteo}


def preset(name: str) -> DLRMDeclaration:
    """The preset called ``name``; ConfigError names the others."""
    if name not in PRESETS:
        known = ", ".join(PRESETS)
        raise ConfigError([f'there is no preset "{name}"{near_matches(name, PRESETS)}; presets: {known}'])
    return PRESETS[name]()

"""Declaration → TorchRec model, before it is planned and sharded."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torchrec.models.dlrm import DLRM, DLRM_DCN, DLRM_Projection
from torchrec.modules.embedding_configs import EmbeddingBagConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from dlrm_factory.config.declaration import DLRMDeclaration
from dlrm_factory.errors import WeightsError

__all__ = [
    "EMBEDDINGS_PREFIX",
    "embedding_bag_configs",
    "load_dense",
    "make_model",
    "table_weight_key",
    "tables_of",
]

EMBEDDINGS_PREFIX = "sparse_arch.embedding_bag_collection.embedding_bags"

_POOLING = {"sum": PoolingType.SUM, "mean": PoolingType.MEAN}


def table_weight_key(table: str) -> str:
    """The state dict key of a table's weight."""
    return f"{EMBEDDINGS_PREFIX}.{table}.weight"


def embedding_bag_configs(declaration: DLRMDeclaration) -> list[EmbeddingBagConfig]:
    """TorchRec's config of each table, in declared order. Tables are fp32 until they are quantised.

    A weighted model sums every bag: its means come as weights, see `dlrm_factory.batch.jagged`.
    """
    return [
        EmbeddingBagConfig(
            name=table.name,
            num_embeddings=table.num_embeddings,
            embedding_dim=table.embedding_dim,
            feature_names=declaration.features_of(table.name),
            pooling=_POOLING["sum" if declaration.is_weighted else table.pooling],
        )
        for table in declaration.tables
    ]


def make_model(
    declaration: DLRMDeclaration,
    *,
    tables_device: str | torch.device = "meta",
    dense_device: str | torch.device = "cpu",
) -> DLRM:
    """A DLRM, DLRM_DCN or DLRM_Projection as declared.

    forward(dense_features float32 [B, number of dense features], sparse_features KeyedJaggedTensor, with weights
    if any feature is weighted) → logits float32 [B, 1]. On ``meta`` the tables take no memory; dense weights are
    TorchRec's random initial ones.
    """
    tables = EmbeddingBagCollection(
        tables=embedding_bag_configs(declaration),
        device=torch.device(tables_device),
        is_weighted=declaration.is_weighted,
    )
    common = {
        "embedding_bag_collection": tables,
        "dense_in_features": len(declaration.dense_features),
        "dense_arch_layer_sizes": declaration.dense_arch_layer_sizes,
        "over_arch_layer_sizes": declaration.over_arch_layer_sizes,
        "dense_device": torch.device(dense_device),
    }
    if declaration.architecture == "dlrm_dcn":
        return DLRM_DCN(
            **common,
            dcn_num_layers=declaration.dcn_num_layers,
            dcn_low_rank_dim=declaration.dcn_low_rank_dim,
        )
    if declaration.architecture == "dlrm_projection":
        return DLRM_Projection(
            **common,
            interaction_branch1_layer_sizes=declaration.interaction_branch1_layer_sizes,
            interaction_branch2_layer_sizes=declaration.interaction_branch2_layer_sizes,
        )
    return DLRM(**common)


def tables_of(model: nn.Module) -> EmbeddingBagCollection:
    """The model's unsharded EmbeddingBagCollection."""
    collection = model.sparse_arch.embedding_bag_collection
    assert isinstance(collection, EmbeddingBagCollection)
    return collection


def load_dense(model: DLRM, state: Mapping[str, torch.Tensor]) -> None:
    """Load every weight but the tables' from ``state``, whose tables are passed over.

    WeightsError if a dense weight is missing, misshapen or not of this model.
    """
    tables = {key for key in model.state_dict() if key.startswith(EMBEDDINGS_PREFIX)}
    try:
        dense = {key: tensor for key, tensor in state.items() if key not in tables}
        missing, unexpected = model.load_state_dict(dense, strict=False)
    except RuntimeError as error:
        raise WeightsError(f"dense weights do not fit the declared model: {error}") from None
    missing = [key for key in missing if key not in tables]
    if missing or unexpected:
        raise WeightsError(
            f"dense weights are not the declared model's: missing {missing}, not of this model {unexpected}"
        )

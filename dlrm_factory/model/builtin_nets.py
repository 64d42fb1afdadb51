"""Dense parts of TorchRec's models, as nets that take looked-up vectors: the same classes, the same state dict keys."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torchrec.models.deepfm import SimpleDeepFMNN
from torchrec.models.dlrm import DLRM, DLRM_DCN, DLRM_Projection
from torchrec.models.experimental.transformerdlrm import DLRM_Transformer
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from dlrm_factory.config.declaration import DLRMDeclaration

__all__ = ["DLRMNet", "DeepFMNet", "builtin_net", "model_feature_order"]


def model_feature_order(declaration: DLRMDeclaration) -> list[int]:
    """TorchRec's models order pooled features by table: positions of these in declared order."""
    names = [feature.name for feature in declaration.pooled_features]
    return [names.index(name) for table in declaration.tables for name in declaration.features_of(table.name)]


class DLRMNet(nn.Module):
    """Bottom MLP, interaction and top MLP of a ``DLRM`` or of a model derived from it.

    forward(dense float32 [B, number of dense features], pooled float32 [B, F, D], features in declared order) →
    logits float32 [B].
    """

    order: torch.Tensor

    def __init__(self, model: DLRM, order: list[int]) -> None:
        super().__init__()
        self.dense_arch, self.inter_arch, self.over_arch = model.dense_arch, model.inter_arch, model.over_arch
        self.reorder = order != sorted(order)
        self.register_buffer("order", torch.tensor(order, device="cpu"), persistent=False)

    def forward(self, dense: torch.Tensor, pooled: torch.Tensor) -> torch.Tensor:
        if self.reorder:
            pooled = pooled.index_select(1, self.order)
        logits: torch.Tensor = self.over_arch(self.inter_arch(self.dense_arch(dense), pooled))
        return logits.reshape(-1)


class DeepFMNet(nn.Module):
    """Dense parts of TorchRec's ``SimpleDeepFMNN`` (Guo et al. 2017), but for the sigmoid, which the scorer takes.

    forward(dense float32 [B, number of dense features], pooled vectors by feature, float32 [B, D]) → logits [B].
    """

    def __init__(self, model: SimpleDeepFMNN) -> None:
        super().__init__()
        self.dense_arch, self.inter_arch, self.over_arch = model.dense_arch, model.inter_arch, model.over_arch

    def forward(self, dense: torch.Tensor, pooled_by_name: Mapping[str, torch.Tensor]) -> torch.Tensor:
        linear, _ = self.over_arch.model
        logits: torch.Tensor = linear(self.inter_arch(self.dense_arch(dense), pooled_by_name))
        return logits.reshape(-1)


def builtin_net(
    declaration: DLRMDeclaration, tables: EmbeddingBagCollection, device: torch.device
) -> DLRMNet | DeepFMNet:
    """The net of an architecture of TorchRec's, with TorchRec's random initial weights on ``device``."""
    if declaration.architecture == "deepfm":
        assert declaration.hidden_layer_size is not None
        assert declaration.deep_fm_dimension is not None
        with device:
            return DeepFMNet(
                SimpleDeepFMNN(
                    len(declaration.dense_features),
                    tables,
                    declaration.hidden_layer_size,
                    declaration.deep_fm_dimension,
                )
            )
    return DLRMNet(_dlrm(declaration, tables, device), model_feature_order(declaration))


def _dlrm(declaration: DLRMDeclaration, tables: EmbeddingBagCollection, device: torch.device) -> DLRM:
    common: dict[str, Any] = {
        "embedding_bag_collection": tables,
        "dense_in_features": len(declaration.dense_features),
        "dense_arch_layer_sizes": declaration.dense_arch_layer_sizes,
        "over_arch_layer_sizes": declaration.over_arch_layer_sizes,
        "dense_device": device,
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
    if declaration.architecture == "dlrm_transformer":
        with device, warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="enable_nested_tensor is True")
            model = DLRM_Transformer(
                **common,
                nhead=declaration.nhead,
                ntransformer_layers=declaration.ntransformer_layers,
            )
        # TorchRec 1.8 leaves batch_first at False, so that the samples of a batch would attend to each other.
        for layer in model.inter_arch.interarch_TE.layers:
            layer.self_attn.batch_first = True
        return model
    return DLRM(**common)

"""Everything of a DLRM after the lookup, as one module to compile."""

from __future__ import annotations

import torch
from torch import nn
from torchrec.models.dlrm import DLRM

from dlrm_factory.compiled.capability import Precision
from dlrm_factory.config.declaration import DLRMDeclaration

__all__ = ["DenseNet", "model_feature_order"]


def model_feature_order(declaration: DLRMDeclaration) -> list[int]:
    """TorchRec's models order sparse features by table: positions of these in declared order."""
    names = declaration.sparse_names
    return [names.index(name) for table in declaration.tables for name in declaration.features_of(table.name)]


class DenseNet(nn.Module):
    """Bottom MLP, interaction and top MLP of ``model``.

    forward(dense float32 [B, number of dense features], pooled float32 [B, F, D], features in declared order)
    → logits float32 [B]. With ``bf16`` the parts compute in bfloat16 and only the logit is float32 again.
    """

    def __init__(self, model: DLRM, declaration: DLRMDeclaration, precision: Precision) -> None:
        super().__init__()
        self.dense_arch, self.inter_arch, self.over_arch = model.dense_arch, model.inter_arch, model.over_arch
        self.dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self.to(self.dtype)
        order = model_feature_order(declaration)
        self.reorder = order != sorted(order)
        self.register_buffer("order", torch.tensor(order), persistent=False)

    def forward(self, dense: torch.Tensor, pooled: torch.Tensor) -> torch.Tensor:
        if self.reorder:
            pooled = pooled.index_select(1, self.order)
        embedded = self.dense_arch(dense.to(self.dtype))
        logits: torch.Tensor = self.over_arch(self.inter_arch(embedded, pooled.to(self.dtype)))
        return logits.reshape(-1).float()

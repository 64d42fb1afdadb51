"""Everything of a DLRM after the lookup, as one module to compile."""

from __future__ import annotations

import torch
from torch import nn
from torchrec.models.dlrm import DLRM

from dlrm_factory.compiled.capability import DTYPES, Precision
from dlrm_factory.config.declaration import DLRMDeclaration

__all__ = ["DenseNet", "model_feature_order"]


def model_feature_order(declaration: DLRMDeclaration) -> list[int]:
    """TorchRec's models order sparse features by table: positions of these in declared order."""
    names = declaration.sparse_names
    return [names.index(name) for table in declaration.tables for name in declaration.features_of(table.name)]


class DenseNet(nn.Module):
    """Bottom MLP, interaction and top MLP of ``model``, which it takes over and changes.

    forward(dense float32 [B, number of dense features], pooled [B, F, D] in ``dtype``, features in declared order)
    → logits float32 [B]. With ``bf16`` the parts compute in bfloat16 and only the logit is float32 again.
    """

    def __init__(self, model: DLRM, declaration: DLRMDeclaration, precision: Precision) -> None:
        super().__init__()
        self.dense_arch, self.over_arch = model.dense_arch, model.over_arch
        self.inter_arch: nn.Module = model.inter_arch
        if declaration.architecture == "dlrm":
            kind = JointInteraction if precision == "bf16" else FlatInteraction
            interaction = kind(len(declaration.sparse_features))
            _widen(_first_linear(self.over_arch), interaction.filling(declaration.embedding_dim))
            self.inter_arch = interaction
        self.dtype = DTYPES[precision]
        self.to(self.dtype)
        order = model_feature_order(declaration)
        self.reorder = order != sorted(order)
        self.register_buffer("order", torch.tensor(order), persistent=False)

    def forward(self, dense: torch.Tensor, pooled: torch.Tensor) -> torch.Tensor:
        if self.reorder:
            pooled = pooled.index_select(1, self.order)
        embedded = self.dense_arch(dense.to(self.dtype))
        logits: torch.Tensor = self.over_arch(self.inter_arch(embedded, pooled))
        return logits.reshape(-1).float()


class FlatInteraction(nn.Module):
    """TorchRec's ``InteractionArch``, filled up to a width that matrix units take whole.

    forward(embedded [B, D], pooled [B, F, D]) → [B, D + (F + 1) F / 2 + filling]: the dense vector, the dot products
    of all pairs of the F + 1 vectors, row by row of the upper triangle, then what the next layer multiplies by 0.

    The first row is the dense vector's with the others. Computed apart, the pooled vectors need not be copied.
    """

    pairs: torch.Tensor
    MULTIPLE = 32  # columns of a bf16 tile; with an odd width oneDNN and the compiler fall back to slow code

    def __init__(self, sparse_features: int) -> None:
        super().__init__()
        self._first_row = sparse_features
        self._use_pairs_of(sparse_features)

    def _use_pairs_of(self, vectors: int) -> None:
        row, column = torch.triu_indices(vectors, vectors, offset=1)
        self.register_buffer("pairs", row * vectors + column, persistent=False)

    def filling(self, embedding_dim: int) -> int:
        """How many columns are added; from then on they are part of what forward returns."""
        missing = -(embedding_dim + self._first_row + len(self.pairs)) % self.MULTIPLE
        self.pairs = torch.cat([self.pairs, self.pairs.new_zeros(missing)])
        return missing

    def forward(self, embedded: torch.Tensor, pooled: torch.Tensor) -> torch.Tensor:
        turned = pooled.transpose(1, 2)
        first_row = torch.bmm(embedded.unsqueeze(1), turned).flatten(1)
        products = torch.bmm(pooled, turned).flatten(1)
        return torch.cat((embedded, first_row, products.index_select(1, self.pairs)), dim=1)


class JointInteraction(FlatInteraction):
    """The same with one product a sample, as is best for matrix units that take 16 rows at once."""

    def __init__(self, sparse_features: int) -> None:
        super().__init__(sparse_features)
        self._first_row = 0
        self._use_pairs_of(sparse_features + 1)

    def forward(self, embedded: torch.Tensor, pooled: torch.Tensor) -> torch.Tensor:
        vectors = torch.cat((embedded.unsqueeze(1), pooled), dim=1)
        products = torch.bmm(vectors, vectors.transpose(1, 2)).flatten(1)
        return torch.cat((embedded, products.index_select(1, self.pairs)), dim=1)


def _first_linear(module: nn.Module) -> nn.Linear:
    return next(part for part in module.modules() if isinstance(part, nn.Linear))


def _widen(linear: nn.Linear, columns: int) -> None:
    """Let ``linear`` take ``columns`` more inputs, which it multiplies by 0."""
    linear.weight = nn.Parameter(torch.nn.functional.pad(linear.weight.detach(), (0, columns)))
    linear.in_features += columns

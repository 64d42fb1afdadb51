"""Dense parts of the model as one module to compile, in the CPU's best precision."""

from __future__ import annotations

import copy
import functools
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from dlrm_factory.config.declaration import DLRMDeclaration
from dlrm_factory.model.builtin_nets import DLRMNet
from dlrm_factory.model.model import RankingModel

__all__ = [
    "DTYPES",
    "MAX_FLOAT_WEIGHTS",
    "DenseNet",
    "Precision",
    "best_precision",
    "cpu_capability",
    "make_dense_net",
    "narrow_bottom",
    "pooled_dtype",
]

Precision = Literal["fp32", "bf16"]

DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}

# Flags of /proc/cpuinfo with which bf16 matrix products are faster than fp32 ones.
_BF16_FLAGS = ("amx_bf16", "avx512_bf16")

# Layers of the bottom MLP with so many weights at most cost too little in float32 to be narrowed.
MAX_FLOAT_WEIGHTS = 1 << 15


@functools.cache
def _cpu_flags() -> frozenset[str]:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return frozenset()
    line = next((line for line in text.splitlines() if line.startswith(("flags", "Features"))), ":")
    return frozenset(line.partition(":")[2].split())


def best_precision() -> Precision:
    """``bf16`` where the CPU multiplies it natively, else ``fp32``."""
    return "bf16" if any(flag in _cpu_flags() for flag in _BF16_FLAGS) else "fp32"


def cpu_capability() -> str:
    """A name for everything of this CPU that compiled code may rely on; libraries are not shared across names."""
    vector = torch.backends.cpu.get_cpu_capability()
    native = ",".join(
        flag for flag in (*_BF16_FLAGS, "avx512f", "avx2", "avx512_vnni") if flag in _cpu_flags()
    )
    return f"{platform.machine()}/{vector}/{native}"


def pooled_dtype(declaration: DLRMDeclaration, precision: Precision) -> torch.dtype:
    """Dtype of the pooled vectors that the compiled dense parts take: that of ``precision`` for the DLRM family.

    Other nets take float32, whatever some of their layers compute in.
    """
    of_the_family = declaration.module is None and declaration.architecture != "deepfm"
    return DTYPES[precision] if of_the_family else torch.float32


def make_dense_net(
    model: RankingModel, declaration: DLRMDeclaration, precision: Precision, *, few_samples: bool = False
) -> DenseNet | AnyNet:
    """The dense parts of ``model``, which are taken over and changed, as they are compiled in ``precision``."""
    if isinstance(model.net.module, DLRMNet):
        return DenseNet(model.net.module, declaration, precision, few_samples=few_samples)
    return AnyNet(model.net, precision)


class AnyNet(nn.Module):
    """Any net, unchanged in float32; with ``bf16`` its large linear layers compute in bfloat16.

    forward(dense float32 [B, number of dense features], pooled float32 [B, W], sequences, their lengths, what the
    module's shared part gave) → float32 [B, C], as `dlrm_factory.model.net.Net`.
    """

    def __init__(self, net: nn.Module, precision: Precision) -> None:
        super().__init__()
        self.net = net
        self.dtype = torch.float32
        if precision == "bf16":
            for name, linear in [each for each in net.named_modules() if type(each[1]) is nn.Linear]:
                if _is_large(linear):
                    net.set_submodule(name, FloatEndsLinear(linear, torch.bfloat16))

    def forward(
        self,
        dense: torch.Tensor,
        pooled: torch.Tensor,
        sequences: Sequence[torch.Tensor] = (),
        lengths: Sequence[torch.Tensor] = (),
        shared: Sequence[torch.Tensor] = (),
    ) -> torch.Tensor:
        found: torch.Tensor = self.net(dense, pooled, sequences, lengths, shared)
        return found


class DenseNet(nn.Module):
    """Bottom MLP, interaction and top MLP of ``net``, which it takes over and changes.

    forward(dense float32 [B, number of dense features], pooled [B, W] in ``dtype``, features in declared order, no
    sequences) → logits float32 [B, 1]. With ``bf16`` all large layers compute in bfloat16. The small ones of the
    bottom MLP stay float32, for a large number that is rounded there moves all of the sample's vector; and so does the
    last layer: its bfloat16 logits would be a few hundred values for all candidates to share.
    """

    def __init__(
        self, net: DLRMNet, declaration: DLRMDeclaration, precision: Precision, *, few_samples: bool = False
    ) -> None:
        """``few_samples``: it is compiled with Inductor's C++ products, for batches of a few samples."""
        super().__init__()
        self.dense_arch, self.over_arch = net.dense_arch, net.over_arch
        self.inter_arch: nn.Module = net.inter_arch
        self._shape = (len(declaration.sparse_features), declaration.embedding_dim)
        if declaration.architecture == "dlrm":
            kind = JointInteraction if precision == "bf16" else FlatInteraction
            interaction = kind(len(declaration.sparse_features))
            _widen(_linears(self.over_arch)[0], interaction.filling(declaration.embedding_dim))
            self.inter_arch = interaction
        self.dtype = DTYPES[precision]
        if precision == "bf16":
            _narrow(self.dense_arch, _is_large, few_samples)
            last = _linears(self.over_arch)[-1]
            _narrow(self.over_arch, lambda linear: linear is not last, few_samples)
            self.inter_arch.to(self.dtype)
        self.reorder = net.reorder
        self.register_buffer("order", net.order, persistent=False)

    def forward(
        self,
        dense: torch.Tensor,
        pooled: torch.Tensor,
        sequences: Sequence[torch.Tensor] = (),
        lengths: Sequence[torch.Tensor] = (),
        shared: Sequence[torch.Tensor] = (),
    ) -> torch.Tensor:
        vectors = pooled.unflatten(1, self._shape)
        if self.reorder:
            vectors = vectors.index_select(1, self.order)
        embedded = self.dense_arch(dense).to(self.dtype)
        logits: torch.Tensor = self.over_arch(self.inter_arch(embedded, vectors))
        return logits.reshape(-1, 1).float()


def narrow_bottom(dense_arch: nn.Module, precision: Precision) -> nn.Module:
    """The bottom MLP as `DenseNet` computes it in ``precision``: itself, or a copy with large layers in bfloat16."""
    if precision == "fp32":
        return dense_arch
    narrowed = copy.deepcopy(dense_arch)
    _narrow(narrowed, _is_large, few_samples=False)
    return narrowed


class CastLinear(nn.Linear):
    """``linear`` in ``dtype``, whatever the dtype of its input: [B, in] → [B, out] in ``dtype``."""

    def __init__(self, linear: nn.Linear, dtype: torch.dtype) -> None:
        super().__init__(linear.in_features, linear.out_features, device="meta")
        self.weight = nn.Parameter(linear.weight.detach().to(dtype))
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach().to(dtype))

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(values.to(self.weight.dtype), self.weight, self.bias)


class FloatEndsLinear(CastLinear):
    """The same with a result in float32."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return super().forward(values).float()


class WrittenOutLinear(CastLinear):
    """The same without a matrix product.

    Inductor's C++ product of float32 writes beyond its result when what follows is a cast to bfloat16 (torch 2.13).
    """

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return (values.to(self.weight.dtype).unsqueeze(1) * self.weight).sum(dim=2) + self.bias


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
        """Number of columns added; from then on they are part of what forward returns."""
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


def _narrow(module: nn.Module, is_narrowed: Callable[[nn.Linear], bool], few_samples: bool) -> None:
    """Let the layers of ``module`` that ``is_narrowed`` picks compute in bfloat16, and the others in float32."""
    for name, linear in [each for each in module.named_modules() if isinstance(each[1], nn.Linear)]:
        kind = WrittenOutLinear if few_samples and not is_narrowed(linear) else CastLinear
        dtype = torch.bfloat16 if is_narrowed(linear) else torch.float32
        module.set_submodule(name, kind(linear, dtype))


def _is_large(linear: nn.Linear) -> bool:
    return linear.weight.numel() > MAX_FLOAT_WEIGHTS


def _linears(module: nn.Module) -> list[nn.Linear]:
    return [part for part in module.modules() if isinstance(part, nn.Linear)]


def _widen(linear: nn.Linear, columns: int) -> None:
    """Let ``linear`` take ``columns`` more inputs, which it multiplies by 0."""
    linear.weight = nn.Parameter(torch.nn.functional.pad(linear.weight.detach(), (0, columns)))
    linear.in_features += columns

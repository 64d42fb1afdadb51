"""First layers of a ``DLRM``'s top MLP, apart for one set of features that a ranking's candidates share.

A candidate has N vectors of its own, and shares K with the others: pooled vectors of features whose bags are the
context's and, where all dense features are the context's, the dense vector.

Plain matrix products, as compiled code uses them: nothing to compile for each set of features. In bfloat16 what belongs
to the context, once a ranking, stays float32.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from dlrm_factory.batch import FeatureBatch, select_features
from dlrm_factory.compiled.dense_net import DTYPES, Precision
from dlrm_factory.compiled.lookup import DirectLookup
from dlrm_factory.config.declaration import DLRMDeclaration
from dlrm_factory.model.builtin_nets import DLRMNet

__all__ = [
    "PIECE",
    "InteractionSet",
    "Product",
    "ProjectionSet",
    "SharedSet",
    "linears",
    "saved_share",
    "shared_set",
]

# Candidates at a time: their vectors stay in the CPU's cache until they are read.
PIECE = 512

Bool = npt.NDArray[np.bool_]
Layer = tuple[torch.Tensor, torch.Tensor]  # weight [out, in] and bias [out], float32


def shared_set(
    net: DLRMNet,
    declaration: DLRMDeclaration,
    lookup: DirectLookup,
    own: Bool,
    dense_shared: bool,
    *,
    bottom: nn.Module,
    precision: Precision,
) -> SharedSet:
    """The set for the architecture of ``net``, which is ``dlrm`` or ``dlrm_projection``. See `SharedSet`."""
    kind = InteractionSet if declaration.architecture == "dlrm" else ProjectionSet
    return kind(net, declaration, lookup, own, dense_shared, bottom=bottom, precision=precision)


def saved_share(net: DLRMNet, declaration: DLRMDeclaration, own: int, dense_shared: bool) -> float:
    """Share of a candidate's multiplications that are the context's. ``own``: features with bags of its own."""
    vectors = 1 + len(declaration.sparse_features)
    dim, hidden = declaration.embedding_dim, linears(net.over_arch)[0].out_features
    candidates = own + (not dense_shared)
    contexts = vectors - candidates
    saved = (_weights(net.dense_arch) + hidden * dim) * dense_shared
    if declaration.architecture == "dlrm":
        saved += hidden * (contexts * (contexts - 1) // 2) + dim * (vectors**2 - candidates * vectors)
        return saved / (_weights(net) + dim * vectors**2)
    first, second = (linears(branch) for branch in _branches(net))
    saved += contexts * dim * (first[0].out_features + second[0].out_features)
    return saved / (_weights(net) + first[-1].out_features * second[-1].out_features // dim)


class SharedSet(ABC):
    """Vectors of candidates and of their context, where these share certain features.

    Places of vectors are the model's: 0 is the dense vector, then come the features in the model's order.
    """

    def __init__(
        self,
        net: DLRMNet,
        declaration: DLRMDeclaration,
        lookup: DirectLookup,
        own: Bool,
        dense_shared: bool,
        *,
        bottom: nn.Module,
        precision: Precision,
    ) -> None:
        """Take the layers of ``net`` apart.

        Args:
            net: in float32; its weights are used where they are, as far as they can be.
            own: bool [F], the features that candidates have bags of, in declared order; at least one.
            dense_shared: all dense features are the context's.
            bottom: the bottom MLP in ``precision``, for dense features of candidates.
            precision: of what is computed for each candidate.
        """
        self._dense_shared, self._dtype = dense_shared, DTYPES[precision]
        self._context_bottom, self._bottom = net.dense_arch, bottom
        self._dim = declaration.embedding_dim
        self._features = {True: np.flatnonzero(own).tolist(), False: np.flatnonzero(~own).tolist()}
        self._look_up = {
            is_own: lookup.pooling([declaration.sparse_features[f] for f in features])
            for is_own, features in self._features.items()
        }
        place = {feature: 1 + i for i, feature in enumerate(net.order.tolist())}
        self._vectors = 1 + len(place)
        self._candidates = [place[f] for f in self._features[True]]
        self._contexts = [place[f] for f in self._features[False]]
        (self._contexts if dense_shared else self._candidates).insert(0, 0)
        first, *others = linears(net.over_arch)
        self._layer = _layer(first)
        self._relu = bool(others)  # follows the first layer
        self._take_apart(net)

    @abstractmethod
    def _take_apart(self, net: DLRMNet) -> None:
        """Keep the layers of ``net`` up to the top MLP's first: the context's part, and the candidates'."""

    @abstractmethod
    def of_context(self, context: FeatureBatch) -> Sequence[torch.Tensor]:
        """All that `first_layer` needs of the one sample in ``context``."""

    @abstractmethod
    def first_layer(self, batch: FeatureBatch, size: int, context: Sequence[torch.Tensor]) -> torch.Tensor:
        """[size, hidden], its ReLU too; the rows after those of ``batch`` mean nothing."""

    def _context_vectors(self, context: FeatureBatch) -> torch.Tensor:
        """The K shared vectors, float32 [K, D], the dense one first if it is among them."""
        vectors = self._pooled(context, is_own=False, dtype=torch.float32)[0]
        if not self._dense_shared:
            return vectors
        embedded: torch.Tensor = self._context_bottom(torch.from_numpy(context.dense))
        return torch.cat((embedded, vectors))

    def _own_vectors(self, batch: FeatureBatch, size: int) -> torch.Tensor:
        """The candidates' own vectors [size, N, D], the dense one first if it is among them."""
        vectors = _filled(self._pooled(batch, is_own=True, dtype=self._dtype), size)
        if self._dense_shared:
            return vectors
        embedded = self._bottom(_filled(torch.from_numpy(batch.dense), size)).to(self._dtype)
        return torch.cat((embedded.unsqueeze(1), vectors), dim=1)

    def _pooled(self, batch: FeatureBatch, *, is_own: bool, dtype: torch.dtype) -> torch.Tensor:
        features = self._features[is_own]
        bags = select_features(batch, features)
        return self._look_up[is_own](bags, dtype).view(len(batch), len(features), self._dim)


class InteractionSet(SharedSet):
    """The first layer over the dense vector and all pairs' dot products, of ``dlrm``.

    The part of the shared vectors and of the pairs among them is one vector for all candidates. What is left to compute
    for each are the N K products with shared vectors, and the N (N - 1) / 2 among its own.
    """

    def _take_apart(self, net: DLRMNet) -> None:
        candidates, contexts = self._candidates, self._contexts
        pairs = _Pairs(self._dim, self._vectors)
        own_pairs = [pairs.column(a, b) for a, b in _among(candidates)]
        context_pairs = [pairs.column(a, b) for a, b in _among(contexts)]
        cross = [pairs.column(a, b) for a in candidates for b in contexts]
        numbers = list(range(self._dim))
        weight, self._bias = self._layer
        self._of_context = weight[:, (numbers if self._dense_shared else []) + context_pairs].contiguous()
        own_columns = cross + ([] if self._dense_shared else numbers) + own_pairs
        self._own = Product(weight[:, own_columns].to(self._dtype), relu=self._relu)
        self._context_upper = _upper(len(contexts))
        self._own_upper = _upper(len(candidates))

    def of_context(self, context: FeatureBatch) -> Sequence[torch.Tensor]:
        """The K shared vectors [K, D], and what they add to the first layer, bias included: [hidden]."""
        vectors = self._context_vectors(context)
        products = (vectors @ vectors.t()).flatten().index_select(0, self._context_upper)
        shared = torch.cat((vectors[0], products)) if self._dense_shared else products
        added = torch.addmv(self._bias, self._of_context, shared)
        return vectors.to(self._dtype), added.to(self._dtype)

    def first_layer(self, batch: FeatureBatch, size: int, context: Sequence[torch.Tensor]) -> torch.Tensor:
        shared, bias = context
        vectors = self._own_vectors(batch, size)
        cross = (vectors.reshape(-1, self._dim) @ shared.t()).view(size, -1)
        products = torch.bmm(vectors, vectors.transpose(1, 2)).flatten(1)
        embedded = [] if self._dense_shared else [vectors[:, 0]]
        return self._own(torch.cat((cross, *embedded, _columns(products, self._own_upper)), dim=1), bias)


class ProjectionSet(SharedSet):
    """The first layer over the dense vector and products of two projections of all vectors, of ``dlrm_projection``.

    The shared vectors' part of both projections' first layers is one vector each for all candidates.
    """

    def _take_apart(self, net: DLRMNet) -> None:
        own_columns, context_columns = (
            [self._dim * place + i for place in places for i in range(self._dim)]
            for places in (self._candidates, self._contexts)
        )
        branches = [[_layer(linear) for linear in linears(branch)] for branch in _branches(net)]
        self._of_context = [
            (weight[:, context_columns].contiguous(), bias) for (weight, bias), *_ in branches
        ]
        self._own = [
            Product(weight[:, own_columns].to(self._dtype), relu=True) for (weight, _), *_ in branches
        ]
        self._deeper = [
            [(Product(weight.to(self._dtype), relu=True), bias.to(self._dtype)) for weight, bias in deeper]
            for _, *deeper in branches
        ]
        weight, self._bias = self._layer
        self._of_dense = weight[:, : self._dim].contiguous()
        self._over = Product(
            (weight[:, self._dim :] if self._dense_shared else weight).to(self._dtype), relu=self._relu
        )

    def of_context(self, context: FeatureBatch) -> Sequence[torch.Tensor]:
        """Parts that the shared vectors add to the branches' first layers, and to the top MLP's, biases included."""
        vectors = self._context_vectors(context)
        added = [torch.addmv(bias, weight, vectors.flatten()) for weight, bias in self._of_context]
        over = torch.addmv(self._bias, self._of_dense, vectors[0]) if self._dense_shared else self._bias
        return [each.to(self._dtype) for each in (*added, over)]

    def first_layer(self, batch: FeatureBatch, size: int, context: Sequence[torch.Tensor]) -> torch.Tensor:
        *added, bias = context
        vectors = self._own_vectors(batch, size)
        first, second = (self._branch(i, vectors.flatten(1), added[i]) for i in range(2))
        products = torch.bmm(first.view(size, -1, self._dim), second.view(size, self._dim, -1)).flatten(1)
        return self._over(
            products if self._dense_shared else torch.cat((vectors[:, 0], products), dim=1), bias
        )

    def _branch(self, i: int, own: torch.Tensor, added: torch.Tensor) -> torch.Tensor:
        found = self._own[i](own, added)
        for product, bias in self._deeper[i]:
            found = product(found, bias)
        return found


class Product:
    """A linear layer's product, its bias and perhaps a ReLU: [B, in] → [B, out].

    In bfloat16 by oneDNN's one call for all three, as the compiler of torch emits it, with a weight that it has packed.
    """

    def __init__(self, weight: torch.Tensor, *, relu: bool) -> None:
        """``weight``: [out, in], in float32 or bfloat16."""
        self._turned, self._relu = weight.t(), relu
        self._packed: torch.Tensor | None = None
        if weight.dtype is torch.bfloat16 and _multiplies_bf16():
            self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), PIECE)

    def __call__(self, values: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        if self._packed is None:
            found = torch.addmm(bias, values, self._turned)
            return found.relu_() if self._relu else found
        after = "relu" if self._relu else "none"
        one: torch.Tensor = torch.ops.mkldnn._linear_pointwise(values, self._packed, bias, after, [], "")
        return one


@functools.cache
def _multiplies_bf16() -> bool:
    """True where oneDNN has products of bfloat16 for this CPU: AVX2 alone is too little."""
    zeros = torch.zeros(32, 32, dtype=torch.bfloat16)
    try:
        packed = torch.ops.mkldnn._reorder_linear_weight(zeros, PIECE)
        torch.ops.mkldnn._linear_pointwise(zeros, packed, zeros[0], "relu", [], "")
    except (AttributeError, RuntimeError):
        return False
    return True


class _Pairs:
    """Columns of the first layer: the dense vector, then all pairs of vectors, the upper triangle row by row."""

    def __init__(self, dim: int, vectors: int) -> None:
        self._dim, self._vectors = dim, vectors

    def column(self, a: int, b: int) -> int:
        """Column of the dot product of the vectors in places ``a`` and ``b``, which differ."""
        row, column = min(a, b), max(a, b)
        return self._dim + row * self._vectors - row * (row + 1) // 2 + column - row - 1


def linears(net: nn.Module) -> list[nn.Linear]:
    """List the linear layers of ``net``, in order."""
    return [layer for layer in net.modules() if isinstance(layer, nn.Linear)]


def _branches(net: DLRMNet) -> tuple[nn.Module, nn.Module]:
    return net.inter_arch.interaction_branch1, net.inter_arch.interaction_branch2


def _layer(linear: nn.Linear) -> Layer:
    return linear.weight.detach(), linear.bias.detach()


def _weights(net: nn.Module) -> int:
    return sum(layer.weight.numel() for layer in linears(net))


def _among(places: Sequence[int]) -> list[tuple[int, int]]:
    return [(a, b) for i, a in enumerate(places) for b in places[i + 1 :]]


def _upper(vectors: int) -> torch.Tensor:
    """Places of the upper triangle in a flattened [vectors, vectors], row by row."""
    row, column = torch.triu_indices(vectors, vectors, offset=1)
    return row * vectors + column


def _filled(rows: torch.Tensor, size: int) -> torch.Tensor:
    """``rows``, and zeros up to ``size`` of them."""
    missing = size - rows.shape[0]
    return rows if missing == 0 else torch.cat((rows, rows.new_zeros(missing, *rows.shape[1:])))


def _columns(values: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """``values`` [B, n] in float32 or bfloat16, of it the columns in ``places``.

    Of bfloat16 torch's own way takes twice as long as NumPy's (torch 2.13).
    """
    if values.dtype is not torch.bfloat16:
        return values.index_select(1, places)
    found = np.take(values.view(torch.int16).numpy(), places.numpy(), axis=1, mode="clip")
    return torch.from_numpy(found).view(torch.bfloat16)

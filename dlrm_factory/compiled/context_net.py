"""Dense parts of a ``DLRM`` for a ranking: what its candidates share is computed once.

A candidate has N vectors of its own, and shares K with the others: pooled vectors of features whose bags are the
context's and, where all dense features are the context's, the dense vector. Of the top MLP's first layer, whose input
is the dense vector and all pairs' dot products, the part of the shared vectors and of the pairs among them is one
vector for all candidates. What is left to compute for each are the N K products with shared vectors, and the
N (N - 1) / 2 among its own.

Plain float32 products, as eager code and compiled code use them: nothing to compile for each set of features.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from dlrm_factory.batch import FeatureBatch, SharedContext, select_features, split
from dlrm_factory.compiled.lookup import DirectLookup
from dlrm_factory.config.declaration import DLRMDeclaration
from dlrm_factory.model.builtin_nets import DLRMNet

__all__ = ["ContextNet", "context_net"]

# What the context costs, in candidates: a ranking gains once its candidates together save the work of so many.
# Measured with Criteo's shape on AVX2: half of the features shared save 28% of the work, and pay from 90 candidates.
BREAK_EVEN = 20.0
# Share of the work by which this is slower than compiled code, candidate by candidate.
SLOWER = 0.05
# Sets of features kept at once, the last used: each holds the first layer of the top MLP anew, 0.8 MB of Criteo's.
MAX_SETS = 16
# Candidates at a time: their vectors stay in the CPU's cache until they are read.
_PIECE = 512

Bool = npt.NDArray[np.bool_]


def context_net(net: nn.Module, declaration: DLRMDeclaration, lookup: DirectLookup) -> ContextNet | None:
    """The net of ``net``'s architecture that shares what candidates have in common; None if there is none."""
    if declaration.architecture != "dlrm":
        return None
    assert isinstance(net, DLRMNet)
    return ContextNet(net, declaration, lookup)


class ContextNet:
    """Scores candidates that share one context, in float32 on CPU."""

    def __init__(self, net: DLRMNet, declaration: DLRMDeclaration, lookup: DirectLookup) -> None:
        """``net``: of architecture ``dlrm``, in float32; its weights are used where they are."""
        self._net, self._declaration, self._lookup = net, declaration, lookup
        self._layers = [part for part in net.over_arch.modules() if isinstance(part, nn.Linear)]
        self._sets: OrderedDict[tuple[bool, bytes], _SharedSet] = OrderedDict()

    def worthwhile(self, batch: FeatureBatch, shared: SharedContext) -> list[tuple[int, int]]:
        """The spans of the rankings in ``batch`` that gain by being scored here, each alone."""
        found = []
        for context, (start, stop) in enumerate(shared.spans):
            own: Bool = batch.lengths[:, start:stop].sum(axis=1) > 0
            dense_shared = bool((batch.dense[start:stop] == shared.bags.dense[context]).all())
            saved = self._saved(int(own.sum()), dense_shared)
            if own.any() and (stop - start) * (saved - SLOWER) >= BREAK_EVEN:
                found.append((start, stop))
        return found

    def _saved(self, own: int, dense_shared: bool) -> float:
        """Share of a candidate's multiplications that are the context's. ``own``: features with bags of its own."""
        vectors = 1 + len(self._declaration.sparse_features)
        dim, hidden = self._declaration.embedding_dim, self._layers[0].out_features
        candidates = own + (not dense_shared)
        contexts = vectors - candidates
        saved = hidden * (contexts * (contexts - 1) // 2 + dim * dense_shared)
        saved += dim * (vectors**2 - candidates * vectors)
        saved += _weights(self._net.dense_arch) * dense_shared
        return saved / (_weights(self._net) + dim * vectors**2)

    @torch.no_grad()
    def __call__(self, batch: FeatureBatch, context: FeatureBatch) -> npt.NDArray[np.float32]:
        """Logits, float32 [B, 1].

        Args:
            batch: candidates, with empty bags for the context's features, and all their dense features; at least one
                feature has bags of their own.
            context: one sample with the bags of the context's features.

        RuntimeError for an id outside its table: such ids are refused before, by name.
        """
        own: Bool = batch.lengths.sum(axis=1) > 0
        shared = self._set(own, bool((batch.dense == context.dense).all()))
        self._lookup.check(batch)
        self._lookup.check(context)
        vectors, bias = shared.of_context(context, self._net.dense_arch)
        pieces = split(batch, _PIECE) if len(batch) > _PIECE else [batch]
        return np.concatenate([self._score(piece, shared, vectors, bias).numpy() for piece in pieces])

    def _set(self, own: Bool, dense_shared: bool) -> _SharedSet:
        key = (dense_shared, own.tobytes())
        found = self._sets.get(key)
        if found is None:
            if len(self._sets) >= MAX_SETS:
                self._sets.popitem(last=False)
            found = _SharedSet(
                self._layers[0], self._declaration, self._lookup, self._net.order.tolist(), own, dense_shared
            )
            self._sets[key] = found
        self._sets.move_to_end(key)
        return found

    def _score(
        self, piece: FeatureBatch, shared: _SharedSet, vectors: torch.Tensor, bias: torch.Tensor
    ) -> torch.Tensor:
        hidden = shared.first_layer(piece, vectors, bias, self._net.dense_arch)
        for layer in self._layers[1:]:
            hidden = torch.addmm(layer.bias, hidden.relu_(), layer.weight.t())
        return hidden


class _SharedSet:
    """First layer of the top MLP, apart for one set of shared features.

    Places of vectors are the model's: 0 is the dense vector, then come the features in the model's order.
    """

    def __init__(
        self,
        layer: nn.Linear,
        declaration: DLRMDeclaration,
        lookup: DirectLookup,
        order: Sequence[int],
        own: Bool,
        dense_shared: bool,
    ) -> None:
        """``own``: bool [F], the features that candidates have bags of, in declared order; at least one."""
        self._dense_shared = dense_shared
        self._dim = declaration.embedding_dim
        self._features = {True: np.flatnonzero(own).tolist(), False: np.flatnonzero(~own).tolist()}
        self._look_up = {
            is_own: lookup.pooling([declaration.sparse_features[f] for f in features])
            for is_own, features in self._features.items()
        }
        place = {feature: 1 + i for i, feature in enumerate(order)}
        candidates = [place[f] for f in self._features[True]]
        contexts = [place[f] for f in self._features[False]]
        (contexts if dense_shared else candidates).insert(0, 0)
        pairs = _Pairs(self._dim, vectors=1 + len(order))
        own_pairs = [pairs.column(a, b) for a, b in _among(candidates)]
        context_pairs = [pairs.column(a, b) for a, b in _among(contexts)]
        cross = [pairs.column(a, b) for a in candidates for b in contexts]
        numbers = list(range(self._dim))
        weight = layer.weight.detach()
        assert layer.bias is not None
        self._bias = layer.bias.detach()
        self._of_context = weight[:, (numbers if dense_shared else []) + context_pairs].contiguous()
        self._cross = weight[:, cross].contiguous().t()
        self._own = weight[:, ([] if dense_shared else numbers) + own_pairs].contiguous().t()
        self._context_upper = _upper(len(contexts))
        self._own_upper = _upper(len(candidates))

    def of_context(self, context: FeatureBatch, dense_arch: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
        """The K shared vectors [K, D], and what they add to the first layer, bias included: [hidden]."""
        vectors = self._vectors(context, is_own=False)[0]
        parts = []
        if self._dense_shared:
            embedded = dense_arch(torch.from_numpy(context.dense))
            vectors = torch.cat((embedded, vectors))
            parts.append(embedded[0])
        products = (vectors @ vectors.t()).flatten()
        parts.append(products.index_select(0, self._context_upper))
        return vectors, torch.addmv(self._bias, self._of_context, torch.cat(parts))

    def first_layer(
        self, batch: FeatureBatch, shared: torch.Tensor, bias: torch.Tensor, dense_arch: nn.Module
    ) -> torch.Tensor:
        """[B, hidden], before its ReLU."""
        vectors = self._vectors(batch, is_own=True)
        parts = []
        if not self._dense_shared:
            embedded = dense_arch(torch.from_numpy(batch.dense))
            vectors = torch.cat((embedded.unsqueeze(1), vectors), dim=1)
            parts.append(embedded)
        cross = (vectors.reshape(-1, self._dim) @ shared.t()).view(len(batch), -1)
        products = torch.bmm(vectors, vectors.transpose(1, 2)).flatten(1)
        parts.append(products.index_select(1, self._own_upper))
        own = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
        return torch.addmm(bias, cross, self._cross).addmm_(own, self._own)

    def _vectors(self, batch: FeatureBatch, *, is_own: bool) -> torch.Tensor:
        """[B, N, D] of the candidates' features, or [B, K, D] of the context's."""
        features = self._features[is_own]
        bags = select_features(batch, features)
        return self._look_up[is_own](bags).view(len(batch), len(features), self._dim)


class _Pairs:
    """Columns of the first layer: the dense vector, then all pairs of vectors, the upper triangle row by row."""

    def __init__(self, dim: int, vectors: int) -> None:
        self._dim, self._vectors = dim, vectors

    def column(self, a: int, b: int) -> int:
        """Column of the dot product of the vectors in places ``a`` and ``b``, which differ."""
        row, column = min(a, b), max(a, b)
        return self._dim + row * self._vectors - row * (row + 1) // 2 + column - row - 1


def _weights(net: nn.Module) -> int:
    return sum(layer.weight.numel() for layer in net.modules() if isinstance(layer, nn.Linear))


def _among(places: Sequence[int]) -> list[tuple[int, int]]:
    return [(a, b) for i, a in enumerate(places) for b in places[i + 1 :]]


def _upper(vectors: int) -> torch.Tensor:
    """Places of the upper triangle in a flattened [vectors, vectors], row by row."""
    row, column = torch.triu_indices(vectors, vectors, offset=1)
    return row * vectors + column

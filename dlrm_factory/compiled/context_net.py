"""Dense parts of a ``DLRM`` for a ranking: what its candidates share is computed once.

A candidate has N vectors of its own, and shares K with the others: pooled vectors of features whose bags are the
context's and, where all dense features are the context's, the dense vector. Of the top MLP's first layer, whose input
is the dense vector and all pairs' dot products, the part of the shared vectors and of the pairs among them is one
vector for all candidates. What is left to compute for each are the N K products with shared vectors, and the
N (N - 1) / 2 among its own.

Plain matrix products, as compiled code uses them: nothing to compile for each set of features. In bfloat16 what belongs
to the context, once a ranking, stays float32, and so does the last layer (see `DenseNet`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from dlrm_factory.batch import FeatureBatch, SharedContext, cut, select_features
from dlrm_factory.compiled.dense_net import DTYPES, Precision, narrow_bottom
from dlrm_factory.compiled.lookup import DirectLookup
from dlrm_factory.compiled.sizes import pieces
from dlrm_factory.config.declaration import DLRMDeclaration
from dlrm_factory.model.builtin_nets import DLRMNet

__all__ = ["ContextNet", "context_net"]

# What the context costs, in candidates: a ranking gains once its candidates together save the work of so many.
# Measured with Criteo's shape on AVX2: half of the features shared save 28% of the work, and pay from 90 candidates.
BREAK_EVEN: dict[Precision, float] = {"fp32": 20.0, "bf16": 30.0}
# Share of the work by which this is slower than compiled code, candidate by candidate.
SLOWER: dict[Precision, float] = {"fp32": 0.05, "bf16": 0.1}
# Sets of features kept at once, the last used: each holds the first layer of the top MLP anew, 0.8 MB of Criteo's.
MAX_SETS = 16
# Candidates at a time: their vectors stay in the CPU's cache until they are read.
_PIECE = 512

Bool = npt.NDArray[np.bool_]


def context_net(
    net: nn.Module, declaration: DLRMDeclaration, lookup: DirectLookup, precision: Precision = "fp32"
) -> ContextNet | None:
    """The net of ``net``'s architecture that shares what candidates have in common; None if there is none."""
    if declaration.architecture != "dlrm":
        return None
    assert isinstance(net, DLRMNet)
    return ContextNet(net, declaration, lookup, precision)


class ContextNet:
    """Scores candidates that share one context, on CPU."""

    def __init__(
        self, net: DLRMNet, declaration: DLRMDeclaration, lookup: DirectLookup, precision: Precision = "fp32"
    ) -> None:
        """``net``: of architecture ``dlrm``, in float32; in this precision its weights are used where they are."""
        self._net, self._declaration, self._lookup = net, declaration, lookup
        self._precision, dtype = precision, DTYPES[precision]
        linears = [part for part in net.over_arch.modules() if isinstance(part, nn.Linear)]
        self._hidden = linears[0].out_features
        layers = [(layer.weight.detach(), layer.bias.detach()) for layer in linears]
        self._first, *inner = layers
        self._first_relu = bool(inner)
        self._inner = [(_Product(weight.to(dtype), relu=True), bias.to(dtype)) for weight, bias in inner[:-1]]
        self._last = inner[-1:]
        self._bottom = narrow_bottom(net.dense_arch, precision)
        self._sets: OrderedDict[tuple[bool, bytes], _SharedSet] = OrderedDict()

    def worthwhile(self, batch: FeatureBatch, shared: SharedContext) -> list[tuple[int, int]]:
        """The spans of the rankings in ``batch`` that gain by being scored here, each alone."""
        found = []
        for context, (start, stop) in enumerate(shared.spans):
            own: Bool = batch.lengths[:, start:stop].sum(axis=1) > 0
            dense_shared = bool((batch.dense[start:stop] == shared.bags.dense[context]).all())
            saved = self._saved(int(own.sum()), dense_shared)
            if (
                own.any()
                and (stop - start) * (saved - SLOWER[self._precision]) >= BREAK_EVEN[self._precision]
            ):
                found.append((start, stop))
        return found

    def _saved(self, own: int, dense_shared: bool) -> float:
        """Share of a candidate's multiplications that are the context's. ``own``: features with bags of its own."""
        vectors = 1 + len(self._declaration.sparse_features)
        dim, hidden = self._declaration.embedding_dim, self._hidden
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
        spans = list(self._pieces(len(batch)))
        parts = cut(batch, [0, *(stop for _, stop, _ in spans)]) if len(spans) > 1 else [batch]
        return np.concatenate(
            [
                self._score(part, size, shared, vectors, bias)[: len(part)].numpy()
                for part, (_, _, size) in zip(parts, spans, strict=True)
            ]
        )

    def _pieces(self, samples: int) -> Iterator[tuple[int, int, int]]:
        """(start, stop, size) of the pieces that ``samples`` are computed in, filled up to ``size``."""
        if self._precision == "bf16":
            return pieces(samples)
        stops = (min(start + _PIECE, samples) for start in range(0, samples, _PIECE))
        return ((_PIECE * i, stop, stop - _PIECE * i) for i, stop in enumerate(stops))

    def _set(self, own: Bool, dense_shared: bool) -> _SharedSet:
        key = (dense_shared, own.tobytes())
        found = self._sets.get(key)
        if found is None:
            if len(self._sets) >= MAX_SETS:
                self._sets.popitem(last=False)
            found = _SharedSet(
                self._first,
                self._declaration,
                self._lookup,
                self._net.order.tolist(),
                own,
                dense_shared,
                DTYPES[self._precision],
                relu=self._first_relu,
            )
            self._sets[key] = found
        self._sets.move_to_end(key)
        return found

    def _score(
        self, piece: FeatureBatch, size: int, shared: _SharedSet, vectors: torch.Tensor, bias: torch.Tensor
    ) -> torch.Tensor:
        """Logits [size, 1], of which those of ``piece`` come first."""
        found = shared.first_layer(piece, size, vectors, bias, self._bottom)
        for product, bias in self._inner:
            found = product(found, bias)
        found = found.float()
        for weight, bias in self._last:
            found = torch.addmm(bias, found, weight.t())
        return found


class _SharedSet:
    """First layer of the top MLP, apart for one set of shared features.

    Places of vectors are the model's: 0 is the dense vector, then come the features in the model's order.
    """

    def __init__(
        self,
        layer: tuple[torch.Tensor, torch.Tensor],
        declaration: DLRMDeclaration,
        lookup: DirectLookup,
        order: Sequence[int],
        own: Bool,
        dense_shared: bool,
        dtype: torch.dtype,
        *,
        relu: bool,
    ) -> None:
        """Make the layer's parts.

        Args:
            layer: its weight [hidden, in] and bias [hidden], float32.
            own: bool [F], the features that candidates have bags of, in declared order; at least one.
            dtype: of what is computed for each candidate.
            relu: a ReLU follows the layer.
        """
        self._dense_shared, self._dtype = dense_shared, dtype
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
        weight, self._bias = layer
        self._of_context = weight[:, (numbers if dense_shared else []) + context_pairs].contiguous()
        own_columns = cross + ([] if dense_shared else numbers) + own_pairs
        self._own = _Product(weight[:, own_columns].to(dtype), relu=relu)
        self._context_upper = _upper(len(contexts))
        self._own_upper = _upper(len(candidates))

    def of_context(self, context: FeatureBatch, dense_arch: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
        """The K shared vectors [K, D], and what they add to the first layer, bias included: [hidden]."""
        vectors = self._vectors(context, is_own=False, dtype=torch.float32)[0]
        parts = []
        if self._dense_shared:
            embedded = dense_arch(torch.from_numpy(context.dense))
            vectors = torch.cat((embedded, vectors))
            parts.append(embedded[0])
        products = (vectors @ vectors.t()).flatten()
        parts.append(products.index_select(0, self._context_upper))
        added = torch.addmv(self._bias, self._of_context, torch.cat(parts))
        return vectors.to(self._dtype), added.to(self._dtype)

    def first_layer(
        self, batch: FeatureBatch, size: int, shared: torch.Tensor, bias: torch.Tensor, dense_arch: nn.Module
    ) -> torch.Tensor:
        """[size, hidden]; the rows after those of ``batch`` mean nothing."""
        vectors = _filled(self._vectors(batch, is_own=True, dtype=self._dtype), size)
        embedded = []
        if not self._dense_shared:
            embedded.append(dense_arch(_filled(torch.from_numpy(batch.dense), size)).to(self._dtype))
            vectors = torch.cat((embedded[0].unsqueeze(1), vectors), dim=1)
        cross = (vectors.reshape(-1, self._dim) @ shared.t()).view(size, -1)
        products = torch.bmm(vectors, vectors.transpose(1, 2)).flatten(1)
        own = torch.cat((cross, *embedded, _columns(products, self._own_upper)), dim=1)
        return self._own(own, bias)

    def _vectors(self, batch: FeatureBatch, *, is_own: bool, dtype: torch.dtype) -> torch.Tensor:
        """[B, N, D] of the candidates' features, or [B, K, D] of the context's."""
        features = self._features[is_own]
        bags = select_features(batch, features)
        return self._look_up[is_own](bags, dtype).view(len(batch), len(features), self._dim)


class _Product:
    """A linear layer's product, its bias and perhaps a ReLU: [B, in] → [B, out].

    In bfloat16 by oneDNN's one call for all three, as the compiler of torch emits it, with a weight that it has packed.
    """

    def __init__(self, weight: torch.Tensor, *, relu: bool) -> None:
        """``weight``: [out, in], in float32 or bfloat16."""
        self._turned, self._relu = weight.t(), relu
        self._packed: torch.Tensor | None = None
        if weight.dtype is torch.bfloat16 and torch.backends.mkldnn.is_available():
            self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _PIECE)

    def __call__(self, values: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        if self._packed is None:
            found = torch.addmm(bias, values, self._turned)
            return found.relu_() if self._relu else found
        after = "relu" if self._relu else "none"
        one: torch.Tensor = torch.ops.mkldnn._linear_pointwise(values, self._packed, bias, after, [], "")
        return one


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

"""Dense parts of a ``DLRM`` for a ranking: what its candidates share is computed once.

The layers up to the top MLP's first are those of a `SharedSet`; the others are computed for each candidate, the last
one in float32 (see `DenseNet`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from dlrm_factory.batch import FeatureBatch, SharedContext, cut
from dlrm_factory.compiled.context_sets import PIECE, Product, SharedSet, linears, saved_share, shared_set
from dlrm_factory.compiled.dense_net import DTYPES, Precision, narrow_bottom
from dlrm_factory.compiled.lookup import DirectLookup
from dlrm_factory.compiled.sizes import pieces
from dlrm_factory.config.declaration import DLRMDeclaration
from dlrm_factory.model.builtin_nets import DLRMNet

__all__ = ["ContextNet", "context_net"]

# What the context costs, in candidates: a ranking gains once its candidates together save the work of so many.
# Measured with Criteo's shape on AVX2: half of the features shared save 28% of the work, and pay from 90 candidates.
BREAK_EVEN: dict[Precision, float] = {"fp32": 20.0, "bf16": 35.0}
# Share of the work by which this is slower than compiled code, candidate by candidate.
SLOWER: dict[Precision, float] = {"fp32": 0.05, "bf16": 0.1}
# Sets of features kept at once, the last used: each holds the first layer of the top MLP anew, 0.8 MB of Criteo's.
MAX_SETS = 16

Bool = npt.NDArray[np.bool_]


def context_net(
    net: nn.Module, declaration: DLRMDeclaration, lookup: DirectLookup, precision: Precision = "fp32"
) -> ContextNet | None:
    """The net of ``net``'s architecture that shares what candidates have in common; None if there is none."""
    if declaration.architecture not in ("dlrm", "dlrm_projection"):
        return None
    assert isinstance(net, DLRMNet)
    return ContextNet(net, declaration, lookup, precision)


class ContextNet:
    """Scores candidates that share one context, on CPU."""

    def __init__(
        self, net: DLRMNet, declaration: DLRMDeclaration, lookup: DirectLookup, precision: Precision = "fp32"
    ) -> None:
        """``net``: of architecture ``dlrm`` or ``dlrm_projection``, in float32."""
        self._net, self._declaration, self._lookup = net, declaration, lookup
        self._precision, dtype = precision, DTYPES[precision]
        _, *others = linears(net.over_arch)
        layers = [(layer.weight.detach(), layer.bias.detach()) for layer in others]
        self._inner = [(Product(weight.to(dtype), relu=True), bias.to(dtype)) for weight, bias in layers[:-1]]
        self._last = layers[-1:]
        self._bottom = narrow_bottom(net.dense_arch, precision)
        self._shares: dict[tuple[int, bool], float] = {}
        self._sets: OrderedDict[tuple[bool, bytes], SharedSet] = OrderedDict()

    def worthwhile(self, batch: FeatureBatch, shared: SharedContext) -> list[tuple[int, int]]:
        """The spans of the rankings in ``batch`` that gain by being scored here, each alone."""
        found = []
        for context, (start, stop) in enumerate(shared.spans):
            if stop - start < BREAK_EVEN[self._precision]:
                continue
            own: Bool = np.asarray(batch.lengths[:, start:stop].any(axis=1))
            dense_shared = bool((batch.dense[start:stop] == shared.bags.dense[context]).all())
            saved = self._saved(int(np.count_nonzero(own)), dense_shared)
            if (
                own.any()
                and (stop - start) * (saved - SLOWER[self._precision]) >= BREAK_EVEN[self._precision]
            ):
                found.append((start, stop))
        return found

    def _saved(self, own: int, dense_shared: bool) -> float:
        """`saved_share`, kept: it walks through the net."""
        key = own, dense_shared
        if key not in self._shares:
            self._shares[key] = saved_share(self._net, self._declaration, own, dense_shared)
        return self._shares[key]

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
        of_context = shared.of_context(context)
        spans = list(self._pieces(len(batch)))
        parts = cut(batch, [0, *(stop for _, stop, _ in spans)]) if len(spans) > 1 else [batch]
        return np.concatenate(
            [
                self._score(part, size, shared, of_context)[: len(part)].numpy()
                for part, (_, _, size) in zip(parts, spans, strict=True)
            ]
        )

    def _pieces(self, samples: int) -> Iterator[tuple[int, int, int]]:
        """(start, stop, size) of the pieces that ``samples`` are computed in, filled up to ``size``."""
        if self._precision == "bf16":
            return pieces(samples)
        stops = (min(start + PIECE, samples) for start in range(0, samples, PIECE))
        return ((PIECE * i, stop, stop - PIECE * i) for i, stop in enumerate(stops))

    def _set(self, own: Bool, dense_shared: bool) -> SharedSet:
        key = (dense_shared, own.tobytes())
        found = self._sets.get(key)
        if found is None:
            if len(self._sets) >= MAX_SETS:
                self._sets.popitem(last=False)
            found = shared_set(
                self._net,
                self._declaration,
                self._lookup,
                own,
                dense_shared,
                bottom=self._bottom,
                precision=self._precision,
            )
            self._sets[key] = found
        self._sets.move_to_end(key)
        return found

    def _score(
        self, piece: FeatureBatch, size: int, shared: SharedSet, of_context: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        """Logits [size, 1], of which those of ``piece`` come first."""
        found = shared.first_layer(piece, size, of_context)
        for product, bias in self._inner:
            found = product(found, bias)
        found = found.float()
        for weight, bias in self._last:
            found = torch.addmm(bias, found, weight.t())
        return found

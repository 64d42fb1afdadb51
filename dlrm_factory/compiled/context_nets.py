"""Nets that compute a ranking's context once, in each precision that the dense parts come in."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from dlrm_factory.batch import FeatureBatch, SharedContext, tile_context
from dlrm_factory.compiled.context_net import ContextNet, context_net
from dlrm_factory.compiled.dense_net import DTYPES, Precision
from dlrm_factory.compiled.lookup import DirectLookup
from dlrm_factory.compiled.probes import probe_ranking
from dlrm_factory.config.declaration import DLRMDeclaration

__all__ = ["ContextNets"]

logger = logging.getLogger(__name__)

Float32 = npt.NDArray[np.float32]


class ContextNets:
    """The net for contexts that belongs to the dense parts which score now; none for most architectures."""

    def __init__(self, net: nn.Module, declaration: DLRMDeclaration, lookup: DirectLookup) -> None:
        """``net``: in float32. In this precision contexts are computed once from the start."""
        self._arguments = net, declaration, lookup
        first = context_net(net, declaration, lookup)
        self._nets: dict[torch.dtype, ContextNet] = {} if first is None else {torch.float32: first}
        self._probe: tuple[FeatureBatch, SharedContext, Float32] | None = None

    def of(self, pooled_dtype: torch.dtype) -> ContextNet | None:
        """The net beside dense parts that take pooled vectors of this dtype; None if there is none."""
        return self._nets.get(pooled_dtype)

    def expect(self, score: Callable[[FeatureBatch], Float32]) -> None:
        """Keep the logits that ``score``, float32 [B, 1] of a batch, gives a ranking that `use` tries out."""
        if self._nets:
            samples, shared = probe_ranking(self._arguments[1])
            self._probe = samples, shared, score(tile_context(samples, shared))

    def use(self, precision: Precision, tolerance: float) -> None:
        """Take the net of ``precision`` into use, or none, after a log line, if it does not score as expected.

        ``tolerance``: how far a probability may be from the expected one.
        """
        if self._probe is None:
            return
        samples, shared, expected = self._probe
        net = context_net(*self._arguments, precision)
        assert net is not None
        try:
            found = net(samples, shared.bags)
        except RuntimeError:  # torch's, for what it cannot compute on this CPU
            logger.exception("What a ranking's candidates share cannot be computed once in %s", precision)
            found = np.full_like(expected, np.nan)
        given, wanted = (torch.sigmoid(torch.from_numpy(each)) for each in (found, expected))
        difference = float((given - wanted).abs().max())
        if difference <= tolerance:
            self._nets[DTYPES[precision]] = net
            return
        self._nets.pop(DTYPES[precision], None)
        logger.error(
            "What a ranking's candidates share is computed for each of them: computed once in %s, probabilities "
            "differ by %.2g from eager ones, more than %.2g",
            precision,
            difference,
            tolerance,
        )

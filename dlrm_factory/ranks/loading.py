"""One rank's part of sealed weights."""

from __future__ import annotations

from pathlib import Path

from dlrm_factory.compiled import DirectLookup
from dlrm_factory.factory import DLRMFactory
from dlrm_factory.host.memory_limit import memory_limit
from dlrm_factory.ranks.group import RankGroup
from dlrm_factory.scorer import Scorer
from dlrm_factory.weights.held_out import HELD_OUT_FILE
from dlrm_factory.weights.sealed import SealedWeights

__all__ = ["load_rank"]


def load_rank(weights: Path | SealedWeights, group: RankGroup, *, device: str | None = None) -> Scorer:
    """A scorer of this rank's part of sealed weights, for `RankedScorer` or `follow`; eager so far.

    Any number of ranks serves any archive, whatever it declares. On CPU every rank maps the one table file and reads
    its tables, or its rows of them, in place; only column_wise shards are copied.
    """
    sealed = SealedWeights(weights) if isinstance(weights, Path) else weights
    declared = sealed.declaration
    built = DLRMFactory(declared).build(weights=sealed, device=device, group=group.exchange)
    sealed.tables.prepare_lookups(memory_limit())
    # For trying out compiled code, which each rank does alone.
    lookup = DirectLookup(declared, sealed.tables) if built.device.type == "cpu" else None
    is_bounded = (sealed.folder / HELD_OUT_FILE).is_file()
    return Scorer(built, lookup=lookup, vocabularies=sealed.vocabularies, is_bounded=is_bounded)

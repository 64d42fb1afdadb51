"""Bags of encoded rows and the record of the ids that training saw: what to record, and which bags it knows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dlrm_factory.config.declaration import DLRMDeclaration
from dlrm_factory.tools.data.bags import Bags
from dlrm_factory.tools.data.encoding import EncodedChunk
from dlrm_factory.tools.data.split import SplitMasks
from dlrm_factory.weights.held_out import MAX_SAMPLES
from dlrm_factory.weights.seen_ids import SeenIds

__all__ = ["GROUPS", "SeenIdsRecorder", "group_samples"]

# Codes are places in it.
GROUPS = ("no id", "none seen", "some seen", "all seen")
_NO_ID, _NONE, _SOME, _ALL = range(len(GROUPS))

Groups = npt.NDArray[np.uint8]


def group_samples(seen: SeenIds, bags: Sequence[Bags]) -> Groups:
    """Group of each sample by each sparse feature, uint8 [n, F], places in `GROUPS`; ``bags``: by feature."""
    return np.stack([_groups(seen, f, each) for f, each in enumerate(bags)], axis=1)


def _groups(seen: SeenIds, feature: int, bags: Bags) -> Groups:
    known = seen.has(feature, bags.values if bags.hashes is None else bags.hashes)
    samples = np.repeat(np.arange(len(bags.lengths)), bags.lengths)
    hits = np.bincount(samples[known], minlength=len(bags.lengths))
    ids = bags.lengths if bags.unknown is None else bags.lengths + bags.unknown
    groups = np.full(len(ids), _SOME, dtype=np.uint8)
    groups[hits == 0] = _NONE
    groups[hits == ids] = _ALL
    groups[ids == 0] = _NO_ID
    return groups


class SeenIdsRecorder:
    """Records the ids of the rows that train, chunk by chunk, and keeps the first held-out bags to group them.

    Fields:
        seen: the record so far.
    """

    def __init__(self, declaration: DLRMDeclaration) -> None:
        self.seen = SeenIds(declaration)
        # In the end the model is trained on the validation rows too.
        self._validation_trains = declaration.training.refit
        self._features = len(declaration.sparse_features)
        self._room = MAX_SAMPLES
        self._held_out: list[tuple[Bags, ...]] = []

    def add(self, encoded: EncodedChunk, masks: SplitMasks) -> None:
        """Take the rows of a chunk."""
        trains = ~masks.held_out if self._validation_trains else masks.training
        for f, bags in enumerate(encoded.bags):
            ids = bags.values if bags.hashes is None else bags.hashes
            trained = pa.array(ids[np.repeat(trains, bags.lengths)])
            self.seen.add(f, trained.unique().to_numpy())
        first = masks.held_out & (np.cumsum(masks.held_out) <= self._room)
        self._room -= int(first.sum())
        if first.any():
            self._held_out.append(encoded.take(first).bags)

    def held_out_groups(self) -> Groups:
        """`group_samples` of the first held-out rows, as many as travel with a model."""
        none = np.empty((0, self._features), dtype=np.uint8)
        return np.concatenate([none, *(group_samples(self.seen, bags) for bags in self._held_out)])

"""Held-out samples that travel with a model, so that what is served can be compared with what was trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from dlrm_factory.batch.feature_batch import FeatureBatch
from dlrm_factory.config.declaration import DLRMDeclaration
from dlrm_factory.errors import WeightsError

__all__ = [
    "HELD_OUT_FILE",
    "MAX_SAMPLES",
    "UNLABELLED",
    "HeldOut",
    "is_held_out",
    "read_held_out",
    "write_held_out",
]

HELD_OUT_FILE = "held_out.safetensors"
MAX_SAMPLES = 20_000
_PREFIX = "held_out."
_MAX_GROUP = 3
UNLABELLED = 2


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Samples that training did not see.

    Fields:
        batch: B encoded samples.
        labels: uint8 [B, probabilities], 0 or 1; 2 where a sample does not count for one.
        logits: float32 [B, probabilities], by the float model as it was trained.
        seen: uint8 [B, F], of each feature's ids training saw: 1 none, 2 some, 3 all; 0 where there is none. None if
            that is not known.
    """

    batch: FeatureBatch
    labels: npt.NDArray[np.uint8]
    logits: npt.NDArray[np.float32]
    seen: npt.NDArray[np.uint8] | None = None

    def counts_for(self, place: int) -> npt.NDArray[np.bool_]:
        """Mask of the samples that count for the probability at ``place``, bool [B]."""
        found: npt.NDArray[np.bool_] = self.labels[:, place] != UNLABELLED
        return found

    def __post_init__(self) -> None:
        assert len(self.batch) == len(self.labels) == len(self.logits)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Everything under ``held_out.…`` keys, for a safetensors file; one probability's labels and logits as [B]."""
        labels, logits = (each[:, 0] if each.shape[1] == 1 else each for each in (self.labels, self.logits))
        arrays = {
            "dense": self.batch.dense,
            "lengths": self.batch.lengths,
            "values": self.batch.values,
            "weights": self.batch.weights,
            "labels": labels,
            "logits": logits,
            "seen": self.seen,
        }
        found = {name: array for name, array in arrays.items() if array is not None}
        return {
            _PREFIX + name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in found.items()
        }

    @staticmethod
    def of_tensors(tensors: Mapping[str, torch.Tensor], source: str) -> HeldOut:
        """Make the samples that gave `tensors`. WeightsError, naming ``source``, if ``tensors`` are of no samples."""
        arrays = {key.removeprefix(_PREFIX): t.numpy() for key, t in tensors.items() if is_held_out(key)}
        try:
            weights = arrays.pop("weights", None)
            labels, logits, seen = arrays.pop("labels"), arrays.pop("logits"), arrays.pop("seen", None)
            labels, logits = (each[:, None] if each.ndim == 1 else each for each in (labels, logits))
            batch = FeatureBatch(**arrays, weights=weights)
            held_out = HeldOut(batch=batch, labels=labels, logits=logits, seen=seen)
        except (KeyError, TypeError, AssertionError):
            raise WeightsError(f"{source}: its held-out samples are not whole") from None
        if not _is_whole(held_out):
            raise WeightsError(f"{source}: its held-out samples are not whole")
        return held_out

    def check(self, declaration: DLRMDeclaration, source: str) -> None:
        """WeightsError, naming ``source``, unless the samples are of the declared features, and rows of their tables.

        A lookup believes the rows it is given.
        """
        probabilities = len(declaration.probabilities)
        if self.labels.shape[1] != probabilities:
            raise WeightsError(
                f"{source}: its held-out samples have labels of {self.labels.shape[1]} outputs, but {probabilities} "
                "are declared"
            )
        sparse = declaration.sparse_features
        shapes = (self.batch.dense.shape[1], len(self.batch.lengths))
        if shapes != (len(declaration.dense_features), len(sparse)):
            raise WeightsError(
                f"{source}: its held-out samples have {shapes[0]} dense and {shapes[1]} sparse features, but "
                f"{len(declaration.dense_features)} and {len(sparse)} are declared"
            )
        rows = [declaration.table(feature.table).num_embeddings for feature in sparse]
        most = np.repeat(rows, self.batch.lengths.sum(axis=1, dtype=np.int64))
        if len(most) and (self.batch.values.min() < 0 or (self.batch.values >= most).any()):
            raise WeightsError(f"{source}: its held-out samples name rows that their tables do not have")


def _is_whole(held_out: HeldOut) -> bool:
    """True if dtypes, shapes and values are as said."""
    batch = held_out.batch
    expected: list[tuple[npt.NDArray[Any], Any, int]] = [
        (batch.dense, np.float32, 2),
        (batch.lengths, np.int32, 2),
        (batch.values, np.int64, 1),
    ]
    expected += [(held_out.labels, np.uint8, 2), (held_out.logits, np.float32, 2)]
    if batch.weights is not None:
        expected.append((batch.weights, np.float32, 1))
    if held_out.seen is not None:
        expected.append((held_out.seen, np.uint8, 2))
    if any(array.dtype != dtype or array.ndim != dimensions for array, dtype, dimensions in expected):
        return False
    samples = {len(batch.dense), batch.lengths.shape[1], len(held_out.labels), len(held_out.logits)}
    values = {int(batch.lengths.sum(dtype=np.int64)), len(batch.values)}
    values |= set() if batch.weights is None else {len(batch.weights)}
    seen = held_out.seen
    if seen is not None and (seen.shape != batch.lengths.shape[::-1] or (seen > _MAX_GROUP).any()):
        return False
    negative = batch.lengths.size > 0 and batch.lengths.min() < 0
    sound = bool((held_out.labels <= UNLABELLED).all() and np.isfinite(held_out.logits).all())
    sound = sound and held_out.labels.shape == held_out.logits.shape
    return sound and len(samples) == len(values) == 1 and not negative


def is_held_out(key: str) -> bool:
    """True if the tensor called ``key`` belongs to held-out samples."""
    return key.startswith(_PREFIX)


def read_held_out(folder: Path) -> HeldOut | None:
    """The held-out samples in a folder of sealed weights; None if it has none. WeightsError if damaged."""
    path = folder / HELD_OUT_FILE
    if not path.is_file():
        return None
    try:
        return HeldOut.of_tensors(load_file(path), str(path))
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise WeightsError(f"{path}: is not a safetensors file: {error}") from None


def write_held_out(held_out: HeldOut, folder: Path) -> None:
    """Keep ``held_out`` with the sealed weights in ``folder``."""
    save_file(held_out.tensors(), folder / HELD_OUT_FILE)

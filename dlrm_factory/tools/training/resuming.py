"""Whether a snapshot is of the run that wants to go on from it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import xxhash

from dlrm_factory.config.declaration import DLRMDeclaration
from dlrm_factory.config.reading import parse_declaration
from dlrm_factory.errors import DataError, WeightsError
from dlrm_factory.tools.training.loop import TrainingData, TrainingRun

__all__ = ["DataMarks", "check_same_run", "differences"]

# What a run may change on its way: where tables lie, how it is served, and how long and how it is watched.
_FREE = {"sharding", "serving"}
_FREE_TRAINING = {"epochs", "batch_size", "evaluate_every", "early_stopping"}
_SHOWN = 10


class DataMarks(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """What tells one data set from another: its rows, and a checksum of the labels in training order."""

    training_rows: int
    validation_rows: int = 0
    held_out_rows: int
    labels: str

    def __str__(self) -> str:
        return (
            f"{self.training_rows:,} training rows, {self.validation_rows:,} for validation, "
            f"{self.held_out_rows:,} held out, "
            f"checksum of the labels {self.labels}"
        )

    @staticmethod
    def of(data: TrainingData) -> DataMarks:
        digest = xxhash.xxh3_64()
        for rows in (data.training, data.validation, data.held_out):
            digest.update(data.clicks.labels[rows].astype("uint8").tobytes())
        return DataMarks(
            training_rows=len(data.training),
            validation_rows=len(data.validation),
            held_out_rows=len(data.held_out),
            labels=digest.hexdigest(),
        )


def check_same_run(folder: Path, declaration: str, data: DataMarks, run: TrainingRun) -> None:
    """WeightsError, naming what differs, if the snapshot in ``folder`` is another declaration's.

    DataError if it was trained on other data.
    """
    saved = parse_declaration(declaration, source=f"{folder}: declaration")
    found = list(differences(saved, run.objective.built.declaration))
    if found:
        more = f"\n  and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        lines = "\n".join(f"  {line}" for line in found[:_SHOWN])
        raise WeightsError(
            f"{folder}: is a snapshot of another declaration:\n{lines}{more}\n"
            "go on with the declaration it was begun with, or start in another folder"
        )
    here = DataMarks.of(run.data)
    if data != here:
        raise DataError(
            f"{folder}: was trained on other data: {data}; here is {here}; "
            "go on with the data it was begun with, in the same order"
        )


def differences(saved: DLRMDeclaration, here: DLRMDeclaration) -> Iterator[str]:
    """``"$.tables[0].num_embeddings: 1000 in the snapshot, 2000 here"`` for all that may not differ."""
    yield from _differ("$", _fixed(saved), _fixed(here))


def _fixed(declaration: DLRMDeclaration) -> dict[str, Any]:
    fixed: dict[str, Any] = msgspec.to_builtins(declaration)
    for key in _FREE:
        fixed.pop(key, None)
    for key in _FREE_TRAINING:
        fixed["training"].pop(key, None)
    fixed["training"]["validation"] = declaration.training.validation_share  # early_stopping may imply it
    for table in fixed["tables"]:
        table.pop("sharding", None)
    return fixed


def _differ(path: str, saved: Any, here: Any) -> Iterator[str]:
    if isinstance(saved, dict) and isinstance(here, dict):
        for key in sorted(saved.keys() | here.keys()):
            yield from _differ(f"{path}.{key}", saved.get(key), here.get(key))
    elif isinstance(saved, list) and isinstance(here, list) and len(saved) == len(here):
        for i, (one, other) in enumerate(zip(saved, here, strict=True)):
            yield from _differ(f"{path}[{i}]", one, other)
    elif saved != here:
        yield f"{path}: {saved!r} in the snapshot, {here!r} here"

"""Snapshots of a run in a folder: whole or not at all, the newest two, without a pickle.

::

    FOLDER/step-000000000400/snapshot.json       the declaration, the data's marks, where the run is, the files' sizes
    FOLDER/step-000000000400/shard-….safetensors tensors, as torch.distributed.checkpoint cuts them
"""

from __future__ import annotations

import logging
import os
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import xxhash
from torch.distributed.checkpoint import HuggingFaceStorageWriter
from torch.distributed.checkpoint.api import CheckpointException

from dlrm_factory.config.declaration import DLRMDeclaration
from dlrm_factory.config.reading import dump_declaration, parse_declaration
from dlrm_factory.config.trust import code_digest
from dlrm_factory.errors import DataError, WeightsError
from dlrm_factory.tools.data.labels import label_codes
from dlrm_factory.tools.training.loop import TrainingData, TrainingRun
from dlrm_factory.tools.training.run_state import RunState
from dlrm_factory.tools.training.snapshot_tensors import load_tensors, snapshot_tensors

__all__ = ["DataMarks", "Snapshots", "check_same_run", "differences"]

# What a run may change on its way: where tables lie, how it is served, and how long and how it is watched.
_MAY_DIFFER = {"sharding", "serving"}
_TRAINING_MAY_DIFFER = {"epochs", "batch_size", "evaluate_every", "early_stopping"}
_SHOWN = 10

_LOG = logging.getLogger(__name__)
_KEPT = 2
_INDEX = "snapshot.json"
_PREFIX, _PARTIAL = "step-", ".partial-"


class DataMarks(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Marks that tell one data set from another: its rows, and a checksum of the labels in training order."""

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
            digest.update(label_codes(data.clicks.labels[rows]).tobytes())
        return DataMarks(
            training_rows=len(data.training),
            validation_rows=len(data.validation),
            held_out_rows=len(data.held_out),
            labels=digest.hexdigest(),
        )


def check_same_run(folder: Path, declaration: str, code: str, data: DataMarks, run: TrainingRun) -> None:
    """WeightsError, naming what differs, if the snapshot in ``folder`` is another declaration's.

    DataError if it was trained on other data.
    """
    saved = parse_declaration(declaration, source=f"{folder}: declaration")
    here = run.objective.built.declaration
    found = list(differences(saved, here))
    if code != _code_of(here):
        found.append("the code of $.architecture.module is another")
    if found:
        more = f"\n  and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        lines = "\n".join(f"  {line}" for line in found[:_SHOWN])
        raise WeightsError(
            f"{folder}: is a snapshot of another declaration:\n{lines}{more}\n"
            "go on with the declaration it was begun with, or start in another folder"
        )
    marks = DataMarks.of(run.data)
    if data != marks:
        raise DataError(
            f"{folder}: was trained on other data: {data}; here is {marks}; "
            "go on with the data it was begun with, in the same order"
        )


def differences(saved: DLRMDeclaration, here: DLRMDeclaration) -> Iterator[str]:
    """``"$.tables[0].num_embeddings: 1000 in the snapshot, 2000 here"`` for all that may not differ."""
    yield from _differ("$", _fixed(saved), _fixed(here))


def _fixed(declaration: DLRMDeclaration) -> dict[str, Any]:
    fixed: dict[str, Any] = msgspec.to_builtins(declaration)
    for key in _MAY_DIFFER:
        fixed.pop(key, None)
    for key in _TRAINING_MAY_DIFFER:
        fixed["training"].pop(key, None)
    fixed["training"]["validation"] = declaration.training.validation_share  # early_stopping may imply it
    for table in fixed["tables"]:
        table.pop("sharding", None)
    if declaration.module is not None:  # the text of its code is not in a snapshot
        fixed["architecture"].pop("sources", None)
    return fixed


def _code_of(declaration: DLRMDeclaration) -> str:
    """Digest of the code that ``declaration`` brings; empty if it brings none."""
    return "" if declaration.module is None else code_digest(declaration.module)


def _differ(path: str, saved: Any, here: Any) -> Iterator[str]:
    if isinstance(saved, dict) and isinstance(here, dict):
        for key in sorted(saved.keys() | here.keys()):
            yield from _differ(f"{path}.{key}", saved.get(key), here.get(key))
    elif isinstance(saved, list) and isinstance(here, list) and len(saved) == len(here):
        for i, (one, other) in enumerate(zip(saved, here, strict=True)):
            yield from _differ(f"{path}[{i}]", one, other)
    elif saved != here:
        yield f"{path}: {saved!r} in the snapshot, {here!r} here"


class _Snapshot(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Content of `snapshot.json`. ``code``: digest of the model's own code, if any; ``files``: bytes of each."""

    format: int = 1
    declaration: str
    code: str = ""
    data: DataMarks
    world_size: int
    state: RunState
    files: dict[str, int]


class Snapshots:
    """The snapshots in ``folder``. With several ranks all must see the same folder, and make the same calls."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._marks: DataMarks | None = None

    def prepare(self, *, resume: bool) -> None:
        """WeightsError if the folder cannot be written, holds an earlier run's snapshots, or none to go on from."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise WeightsError(f"{self._folder}: cannot be written: {error}") from None
        if not os.access(self._folder, os.W_OK):
            raise WeightsError(f"{self._folder}: cannot be written; name a folder that you may write to")
        found = self._folders()
        if found and not resume:
            raise WeightsError(
                f"{self._folder}: holds snapshots of an earlier run; add --resume to go on from {found[-1].name}, "
                "or name another folder"
            )
        if resume:
            self._newest()

    def save(self, run: TrainingRun) -> None:
        """Collective. WeightsError if it cannot be written."""
        name = f"{_PREFIX}{run.state.all_steps:012d}"
        self._marks = self._marks or DataMarks.of(run.data)
        partial, final = self._folder / f"{_PARTIAL}{name}", self._folder / name
        leads = dist.get_rank() == 0
        if leads:
            shutil.rmtree(partial, ignore_errors=True)
        dist.barrier()
        tensors = snapshot_tensors(run)
        state = msgspec.structs.replace(
            run.state,
            epoch_loss=run.state.epoch_loss.over_ranks(),
            recent_loss=run.state.recent_loss.over_ranks(),
        )
        try:
            _write_tensors(partial, tensors)
            if leads:
                self._finish(partial, final, run, state, self._marks)
        except (CheckpointException, OSError) as error:
            raise WeightsError(f"{final}: cannot be written: {_root_cause(error)}") from None
        dist.barrier()

    def load(self, run: TrainingRun) -> None:
        """Take ``run`` to the newest whole snapshot, at any number of ranks and with any plan.

        WeightsError if it is another declaration's; DataError if it was trained on other data.
        """
        folder, snapshot = self._newest()
        check_same_run(folder, snapshot.declaration, snapshot.code, snapshot.data, run)
        state = snapshot.state
        if run.early_stopping is None or state.best_step is None:
            state.best_step = None
        elif run.early_stopping is not None:
            run.early_stopping.allocate_logits(len(run.data.held_out))
        load_tensors(folder, run)
        if dist.get_rank() != 0:  # the sums are those of all ranks
            state.epoch_loss, state.recent_loss = type(state.epoch_loss)(), type(state.recent_loss)()
        run.state = state
        run.objective.optimizers.set_steps(state.step)

    def _finish(
        self, partial: Path, final: Path, run: TrainingRun, state: RunState, marks: DataMarks
    ) -> None:
        """Write the index, then rename the folder, then remove older snapshots: rank 0's part of `save`."""
        snapshot = _Snapshot(
            declaration=dump_declaration(run.objective.built.declaration),
            code=_code_of(run.objective.built.declaration),
            data=marks,
            world_size=dist.get_world_size(),
            state=state,
            files={path.name: path.stat().st_size for path in sorted(partial.iterdir())},
        )
        index = partial / _INDEX
        with index.open("wb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(snapshot)))
            file.flush()
            os.fsync(file.fileno())
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        for old in self._folders()[:-_KEPT]:
            shutil.rmtree(old)

    def _folders(self) -> list[Path]:
        """Folders of snapshots, from the oldest to the newest."""
        return sorted(path for path in self._folder.glob(f"{_PREFIX}*") if path.is_dir())

    def _newest(self) -> tuple[Path, _Snapshot]:
        for folder in reversed(self._folders()):
            try:
                return folder, _read(folder)
            except WeightsError as error:
                _LOG.warning("%s; passed over", error)
        raise WeightsError(
            f"{self._folder}: holds no whole snapshot to go on from; leave --resume out to start from the beginning"
        )


def _write_tensors(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    # A file each for a table's tensors: torch holds a copy of a file's bytes while it writes it.
    # Rank 0's mapping goes for all ranks.
    keys = _all_keys(tensors)
    groups = {group: i for i, group in enumerate(sorted({_group(key) for key in keys}), start=1)}
    mapping = {key: groups[_group(key)] for key in keys}
    writer = HuggingFaceStorageWriter(str(folder), fqn_to_index_mapping=mapping, save_distributed=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(tensors, storage_writer=writer)


def _all_keys(tensors: dict[str, torch.Tensor]) -> set[str]:
    """The keys of all ranks. Collective."""
    if dist.get_world_size() == 1:
        return set(tensors)
    found: list[list[str]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(found, list(tensors))
    return {key for keys in found for key in keys}


def _group(key: str) -> str:
    kind, _, rest = key.removeprefix("best/").partition("/")
    return rest.partition("/")[0] if kind == "tables" else ""


def _read(folder: Path) -> _Snapshot:
    index = folder / _INDEX
    try:
        snapshot = msgspec.json.decode(index.read_bytes(), type=_Snapshot)
    except (OSError, msgspec.MsgspecError) as error:
        raise WeightsError(f"{index}: cannot be read: {error}") from None
    for name, size in snapshot.files.items():
        path = folder / name
        found = path.stat().st_size if path.is_file() else 0
        if found != size:
            raise WeightsError(f"{path}: has {found} of its {size} bytes")
    return snapshot


def _root_cause(error: BaseException) -> BaseException:
    """The first rank's error within what torch.distributed.checkpoint makes of it."""
    if isinstance(error, CheckpointException):
        return next(iter(error.failures.values()))[0]
    return error

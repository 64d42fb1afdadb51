"""A run's tensors under the names they have in a snapshot, and back, whatever the ranks and the plan.

::

    dense/NAME                             a dense parameter
    dense_optimizer/NAME/KEY               its optimiser's state
    tables/TABLE/weight/columns-A-B        columns [A, B) of a table, float32 [num_embeddings, B - A]
    tables/TABLE/STATE/columns-A-B         its optimiser's state, the same, or [num_embeddings] if it is kept by row
    best/dense/NAME, best/tables/TABLE/…   the weights that early stopping keeps
    best/logits                            theirs of the held-out rows, [rows], or [rows, probabilities] of several

Rows are cut and put together by torch.distributed.checkpoint. Columns are cut and put together here: its safetensors
files hold one part of a name from each rank, and would silently lose the second.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import HuggingFaceStorageReader
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    MetadataIndex,
    TensorProperties,
)
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType

from dlrm_factory.errors import WeightsError
from dlrm_factory.tools.training.loop import TrainingRun
from dlrm_factory.weights.loading import FloatShard

__all__ = ["Shards", "load_tensors", "snapshot_tensors"]


_LOG = logging.getLogger(__name__)


class Shards(torch.Tensor):
    """A tensor that lies in parts on several ranks.

    Not to be computed with. It follows the protocol of `torch.distributed._checkpointable`, so that what one number of
    ranks saved is read by another: a part is put together from the saved parts that overlap it.

    Fields:
        part: this rank's part.
        offsets: where it lies in the whole.
    """

    part: torch.Tensor
    offsets: torch.Size

    @staticmethod
    def of(size: Sequence[int], offsets: Sequence[int], part: torch.Tensor) -> Shards:
        """``part`` of a tensor of ``size``."""
        shards = torch.Tensor._make_wrapper_subclass(Shards, torch.Size(size), dtype=part.dtype)
        shards.part, shards.offsets = part, torch.Size(offsets)
        return shards

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise NotImplementedError(f"{function} of a tensor in parts")

    def __create_write_items__(self, name: str, shards: Shards) -> list[WriteItem]:
        return [
            WriteItem(
                index=MetadataIndex(name, self.offsets),
                type=WriteItemType.SHARD,
                tensor_data=TensorWriteData(
                    chunk=self._chunk(),
                    properties=TensorProperties.create_from_tensor(self.part),
                    size=self.shape,
                ),
            )
        ]

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        return [self._chunk()]

    def __get_tensor_shard__(self, index: MetadataIndex) -> torch.Tensor:
        return self.part

    def _chunk(self) -> ChunkStorageMetadata:
        return ChunkStorageMetadata(offsets=self.offsets, sizes=self.part.shape)


def snapshot_tensors(run: TrainingRun) -> dict[str, torch.Tensor]:
    """Live tensors of this rank by name; those of tables as `Shards`."""
    optimizers = run.objective.optimizers
    tensors = {f"dense/{name}": parameter.detach() for name, parameter in optimizers.dense.items()}
    for name, parameter in optimizers.dense.items():
        for key, state in optimizers.dense_optimizer.state[parameter].items():
            tensors[f"dense_optimizer/{name}/{key}"] = state.view(-1) if state.dim() == 0 else state
    for shard, states in optimizers.table_states():
        for name, tensor in {"weight": shard.weight, **states}.items():
            tensors |= _part(f"tables/{shard.table}/{name}", shard, tensor, run)
    return tensors | _best_tensors(run)


def load_tensors(folder: Path, run: TrainingRun) -> None:
    """Read the snapshot in ``folder`` into the model, its optimisers and the copy of the best weights.

    WeightsError if it lacks a tensor.
    """
    saved = _sizes(folder)
    _make_dense_state(run, saved)
    tensors = snapshot_tensors(run)
    missing = {_split_key(key)[0] or key for key in tensors} - {_split_key(key)[0] or key for key in saved}
    if missing:
        raise WeightsError(
            f"{folder}: lacks {', '.join(sorted(missing)[:10])}; it was not saved by this version"
        )
    _load(folder, {key: tensor for key, tensor in tensors.items() if key in saved})
    for key, tensor in tensors.items():
        if key not in saved and isinstance(tensor, Shards):
            _load_columns(folder, key, tensor, saved)


def _part(stem: str, shard: FloatShard, tensor: torch.Tensor, run: TrainingRun) -> dict[str, torch.Tensor]:
    if not tensor.numel():
        return {}
    first, columns = shard.column_offset, shard.weight.shape[1]
    rows = run.objective.built.declaration.table(shard.table).num_embeddings
    offsets = (shard.row_offset, 0)[: tensor.dim()]
    whole = Shards.of((rows, *tensor.shape[1:]), offsets, tensor)
    return {f"{stem}/columns-{first}-{first + columns}": whole}


def _best_tensors(run: TrainingRun) -> dict[str, torch.Tensor]:
    best = run.early_stopping
    if best is None or best.logits is None:
        return {}
    tensors = {f"best/dense/{name}": tensor for name, tensor in best.weights.dense.items()}
    for shard, copy in best.weights.tables():
        tensors |= _part(f"best/tables/{shard.table}/weight", shard, copy, run)
    logits = torch.from_numpy(best.logits)
    return tensors | {"best/logits": logits.squeeze(1) if logits.shape[1] == 1 else logits}


def _sizes(folder: Path) -> dict[str, tuple[int, ...]]:
    saved = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    return {key: tuple(tensor.size) for key, tensor in saved.items()}


def _make_dense_state(run: TrainingRun, saved: Iterable[str]) -> None:
    """Room for the saved state of the dense optimiser, which makes it only in its first step."""
    optimizers = run.objective.optimizers
    for key in saved:
        if key.startswith("dense_optimizer/"):
            _, name, state = key.split("/")
            parameter = optimizers.dense[name]
            room = torch.zeros(()) if state == "step" else torch.zeros_like(parameter)
            optimizers.dense_optimizer.state[parameter].setdefault(state, room)


def _load(folder: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        # Every rank reads what it needs, without talking.
        dcp.load(dict(tensors), storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=True)


def _load_columns(folder: Path, key: str, shards: Shards, saved: Iterable[str]) -> None:
    """A part of a table that the snapshot's plan cut at other columns.

    Row-wise Adagrad's number is a mean over a shard's columns. So that of wider shards is the mean of the narrow ones',
    weighted by columns: exact. That of narrower shards is unknown: each takes the wide one's.
    """
    stem, first, last = _split_key(key)
    part, by_row = shards.part, shards.part.dim() == 1
    spans = sorted(_split_key(other)[1:] for other in saved if _split_key(other)[0] == stem)
    part.zero_()
    for a, b in spans:
        start, stop = max(a, first), min(b, last)
        if start >= stop:
            continue
        read = part.new_empty((len(part),) if by_row else (len(part), b - a))
        rows = shards.shape[0]
        _load(folder, {f"{stem}/columns-{a}-{b}": Shards.of((rows, *read.shape[1:]), shards.offsets, read)})
        if by_row:
            part.add_(read, alpha=(stop - start) / (last - first))
        else:
            part[:, start - first : stop - first] = read[:, start - a : stop - a]
    if by_row and any(a < first < b or a < last < b for a, b in spans):
        shown = ", ".join(f"{a}-{b}" for a, b in spans)
        _LOG.warning(
            "%s: the snapshot's table was cut at columns %s; columns %d-%d start from the mean over them",
            stem,
            shown,
            first,
            last,
        )


def _split_key(key: str) -> tuple[str, int, int]:
    """The name without columns, and the columns; "" without any."""
    stem, _, columns = key.rpartition("/columns-")
    first, _, last = columns.partition("-")
    return (stem, int(first), int(last)) if stem else ("", 0, 0)

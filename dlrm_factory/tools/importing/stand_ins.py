"""Inert stand-ins for the classes that checkpoints name: they keep what the file says of an object, and do nothing.

A `ShardedTensor` or a `DTensor` is unpickled into one of these, not into itself: torch's own classes would ask
for the process group they were saved with, and run their code. So a file of any rank is read in one process.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

__all__ = [
    "STAND_INS",
    "Record",
    "SavedDTensor",
    "SavedLocalShards",
    "SavedShard",
    "SavedShardedTensor",
    "SavedTensor",
    "only_stand_ins",
]


class Record:
    """An object of a file: ``args`` it was made with, ``fields`` of its state."""

    def __init__(self, *args: Any) -> None:
        self.args = args

    def __setstate__(self, state: Any) -> None:
        self.fields = fields_of(state)

    def get(self, name: str) -> Any:
        """The field ``name``; None if the file says nothing of it."""
        return getattr(self, "fields", {}).get(name)


class SavedShard(Record):
    """torch's `Shard`: a tensor and its place."""


class SavedTensor(torch.Tensor):
    """A tensor that is made of others. It has a size and no memory, and computes nothing."""

    fields: dict[str, Any]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise TypeError(f"a saved tensor takes no part in {func}")

    def __setstate__(self, state: Any) -> None:
        self.fields = fields_of(state)


class SavedShardedTensor(SavedTensor):
    """torch's `ShardedTensor`: its state is (local shards, metadata, process group, sharding spec, …)."""


class SavedDTensor(SavedTensor):
    """torch's `DTensor`: a local tensor and how it is placed."""


class SavedLocalShards(SavedTensor):
    """TorchRec's `LocalShardsWrapper`: the local tensor of its DTensors, with the place of each shard."""


def fields_of(state: Any) -> dict[str, Any]:
    """A pickled state by field; a tuple's by number."""
    if isinstance(state, dict):
        return dict(state)
    if isinstance(state, tuple) and len(state) == 2 and all(s is None or isinstance(s, dict) for s in state):
        return {**(state[0] or {}), **(state[1] or {})}
    if isinstance(state, tuple):
        return {str(i): value for i, value in enumerate(state)}
    return {}


def _member(owner: Any, name: Any) -> Any:
    """In place of `getattr`, which pickle uses for nested classes and enum members. It gets nothing from anything."""
    if owner in (SavedShardedTensor, Record):
        return Record
    raise TypeError(f"getattr of {owner!r}")


_TORCH = "torch.distributed"
# The only globals that a file may name, beside torch's own for plain tensors.
STAND_INS: dict[str, Any] = {
    f"{_TORCH}._shard.sharded_tensor.api.ShardedTensor": SavedShardedTensor,
    f"{_TORCH}._shard.sharded_tensor.api.ShardedTensor.ProcessGroupState": Record,
    f"{_TORCH}._shard.sharded_tensor.shard.Shard": SavedShard,
    f"{_TORCH}._shard.sharded_tensor.metadata.ShardedTensorMetadata": Record,
    f"{_TORCH}._shard.sharded_tensor.metadata.TensorProperties": Record,
    f"{_TORCH}._shard.sharded_tensor.metadata.MEM_FORMAT_ENCODING": Record,
    f"{_TORCH}._shard.metadata.ShardMetadata": Record,
    f"{_TORCH}._shard.sharding_spec.api.EnumerableShardingSpec": Record,
    f"{_TORCH}._shard.sharding_spec.chunk_sharding_spec.ChunkShardingSpec": Record,
    f"{_TORCH}.remote_device._remote_device": Record,
    f"{_TORCH}.tensor.DTensor": SavedDTensor,
    f"{_TORCH}.tensor._dtensor_spec.DTensorSpec": Record,
    f"{_TORCH}.tensor._dtensor_spec.ShardOrderEntry": Record,
    f"{_TORCH}.tensor._dtensor_spec.TensorMeta": Record,
    f"{_TORCH}.tensor.placement_types.Partial": Record,
    f"{_TORCH}.tensor.placement_types.Replicate": Record,
    f"{_TORCH}.tensor.placement_types.Shard": Record,
    f"{_TORCH}.tensor.placement_types._StridedShard": Record,
    f"{_TORCH}.device_mesh.DeviceMesh": Record,
    f"{_TORCH}._mesh_layout._FlatLayout": Record,
    f"{_TORCH}._mesh_layout._MeshLayout": Record,
    f"{_TORCH}.checkpoint.metadata.ChunkStorageMetadata": Record,
    f"{_TORCH}.checkpoint.metadata.TensorProperties": Record,
    f"{_TORCH}.checkpoint.metadata.TensorStorageMetadata": Record,
    f"{_TORCH}.checkpoint.metadata._MEM_FORMAT_ENCODING": Record,
    "torchrec.distributed.shards_wrapper.LocalShardsWrapper": SavedLocalShards,
    f"{_TORCH}.tensor._shards_wrapper.LocalShardsWrapper": SavedLocalShards,
    # What dlrm_s_pytorch and training loops keep beside the weights: losses, paths, options.
    "numpy.core.multiarray.scalar": Record,
    "numpy._core.multiarray.scalar": Record,
    "numpy.core.multiarray._reconstruct": Record,
    "numpy._core.multiarray._reconstruct": Record,
    "numpy.ndarray": Record,
    "numpy.dtype": Record,
    "argparse.Namespace": Record,
    "pathlib.PosixPath": Record,
    "pathlib._local.PosixPath": Record,
    "builtins.getattr": _member,
    "__builtin__.getattr": _member,
}


@contextmanager
def only_stand_ins() -> Iterator[None]:
    """While it lasts, `torch.load(weights_only=True)` takes the stand-ins for what a file names, and nothing else.

    torch itself trusts some classes once they are imported, DTensor among them: those are set aside.
    """
    before = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals([(stand_in, name) for name, stand_in in STAND_INS.items()])
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)

"""Files of `torch.save`, read without running what they pickle.

The classes that checkpoints name have inert stand-ins, which keep what the file says of an object and do nothing. A
`ShardedTensor` or a `DTensor` is unpickled into one of these, not into itself: torch's own classes would ask for the
process group they were saved with, and run their code. So a file of any rank is read in one process.
"""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from dlrm_factory.errors import WeightsError

__all__ = [
    "REMEDY",
    "STAND_INS",
    "Record",
    "SavedDTensor",
    "SavedLocalShards",
    "SavedShard",
    "SavedShardedTensor",
    "SavedTensor",
    "is_torch_file",
    "only_stand_ins",
    "read_torch_file",
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
    """A tensor that is made of others. The stand-in has a size and no memory, and computes nothing."""

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
    """Stand-in for `getattr`, which pickle uses for nested classes and enum members; gets nothing from anything."""
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
    """Let `torch.load(weights_only=True)` take the stand-ins for what a file names, and nothing else, in a block.

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


_ZIP = b"PK\x03\x04"
_OLD = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # torch before 1.6: a pickled magic number, then pickles and tensors
_MAX_PICKLE = 256 << 20
_MAX_MEMBERS = 200_000

REMEDY = """save its weights in a form that holds no program, where the model is at hand:
    import torch.distributed.checkpoint as dcp
    state = {name: t for name, t in model.state_dict().items()}
    dcp.save(state, checkpoint_id="weights_folder")  # on every rank; or, unsharded, safetensors.torch.save_file"""


def is_torch_file(path: Path) -> bool:
    """True if ``path`` begins like a file of `torch.save`."""
    with path.open("rb") as file:
        start = file.read(len(_OLD))
    return start.startswith(_ZIP) or start == _OLD


def read_torch_file(path: Path, *, shown: str = "") -> Any:
    """Read what was saved; tensors on the CPU, those of the zip format mapped. Errors call the file ``shown``.

    WeightsError if it is damaged, packed, or names anything that could run.
    """
    shown = shown or str(path)
    try:
        if not is_torch_file(path):
            raise WeightsError(f"{shown}: is not a file of torch.save; {REMEDY}")
        with path.open("rb") as file:
            mapped = file.read(len(_ZIP)) == _ZIP
    except OSError as error:
        raise WeightsError(f"{shown}: cannot be read: {error}") from None
    if mapped:
        _check_zip(path, shown)
    try:
        with only_stand_ins(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # a damaged file raises whatever torch stumbles over
        raise WeightsError(f"{shown}: {_reason(error)}") from None


def _check_zip(path: Path, shown: str) -> None:
    """The zip is torch's: stored as it is, no larger inside than outside."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except Exception as error:  # zipfile too raises more than BadZipFile
        raise WeightsError(f"{shown}: is damaged or cut short: {error}") from None
    names = [member.filename for member in members]
    if any(name.endswith("/constants.pkl") or "/code/" in name for name in names):
        raise WeightsError(f"{shown}: is a TorchScript program, which is not loaded; {REMEDY}")
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise WeightsError(f"{shown}: holds packed members, which torch.save does not write; {REMEDY}")
    if len(names) > _MAX_MEMBERS or sum(m.file_size for m in members) > path.stat().st_size:
        raise WeightsError(f"{shown}: says that it holds more than the file can; it is damaged")
    pickles = [m for m in members if m.filename.endswith("data.pkl")]
    if not pickles or pickles[0].file_size > _MAX_PICKLE:
        raise WeightsError(f"{shown}: is not a file of torch.save; {REMEDY}")


def _reason(error: Exception) -> str:
    text = str(error).replace("\n", " ")
    for mark in ("Unsupported global: GLOBAL ", "Trying to load unsupported GLOBAL "):
        if mark in text:
            name = text.split(mark, 1)[1].split(" ", 1)[0]
            return f"names {name}, which could run when it is loaded, so it is not; {REMEDY}"
    if "Unsupported" in text or "unrecognized function" in text:
        return f"cannot be loaded safely ({type(error).__name__}: {text[:160]}); {REMEDY}"
    return f"is damaged or cut short ({type(error).__name__}: {text[:160]})"

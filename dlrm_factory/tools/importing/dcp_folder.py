"""A folder of torch.distributed.checkpoint → weights in pieces, read one chunk at a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from dlrm_factory.errors import WeightsError
from dlrm_factory.tools.importing.dcp_metadata import SavedTensorStorage, read_metadata
from dlrm_factory.tools.importing.torch_file import read_torch_file
from dlrm_factory.tools.importing.weights import Piece, Scratch, Source, SourceWeight

__all__ = ["METADATA", "read_dcp_folder"]

METADATA = ".metadata"


def read_dcp_folder(folder: Path, scratch: Scratch) -> Source:
    """The tensors of ``folder``; other values are not read. WeightsError if it is damaged, unsafe or not whole."""
    path = folder / METADATA
    metadata = read_metadata(path)
    try:
        tensors = {
            name: found
            for name, found in metadata.get("state_dict_metadata").items()
            if isinstance(found, SavedTensorStorage)
        }
        places = {
            (index.get("fqn"), _shape(index.get("offset"))): info
            for index, info in metadata.get("storage_data").items()
            if index.get("offset") is not None
        }
        weights = {
            str(name): _weight(str(name), found, places, folder, scratch) for name, found in tensors.items()
        }
    except (AttributeError, TypeError, ValueError, KeyError, IndexError) as error:
        raise WeightsError(f"{path}: is damaged: an entry is not whole ({error})") from None
    return Source(kind="torch.distributed.checkpoint folder", place=str(folder), weights=weights)


def _weight(
    name: str, found: SavedTensorStorage, places: dict[Any, Any], folder: Path, scratch: Scratch
) -> SourceWeight:
    dtype = found.get("properties").get("0")
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"{name} has the dtype {dtype!r}")
    pieces = []
    for chunk in found.get("chunks"):
        offsets, shape = _shape(chunk.get("offsets")), _shape(chunk.get("sizes"))
        info = places.get((name, offsets))
        if info is None:
            raise WeightsError(f"{folder / METADATA}: {name} has no stored chunk at {list(offsets)}")
        pieces.append(_piece(name, offsets, shape, dtype, info, folder, scratch))
    return SourceWeight(name=name, shape=_shape(found.get("size")), dtype=dtype, pieces=tuple(pieces))


def _piece(
    name: str,
    offsets: tuple[int, ...],
    shape: tuple[int, ...],
    dtype: torch.dtype,
    info: Any,
    folder: Path,
    scratch: Scratch,
) -> Piece:
    if info.get("transform_descriptors"):
        raise WeightsError(
            f"{folder}: {name} is packed ({info.get('transform_descriptors')}); save it unpacked"
        )
    path = _inside(folder, str(info.get("relative_path")))
    start, length = int(info.get("offset")), int(info.get("length"))
    if not path.is_file():
        raise WeightsError(f"{path}: is missing; {name} lies in it. Give the whole folder")
    if start < 0 or length < 0 or start + length > path.stat().st_size:
        raise WeightsError(
            f"{path}: ends before byte {start + length}, where {name} lies; it was cut short, fetch it again"
        )
    return Piece(
        offsets=offsets,
        shape=shape,
        origin=str(path),
        load=_loader(name, path, start, length, shape, dtype, scratch),
    )


def _loader(
    name: str,
    path: Path,
    start: int,
    length: int,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    scratch: Scratch,
) -> Callable[[], torch.Tensor]:
    def load() -> torch.Tensor:
        # A chunk is a file of torch.save within a file. On its own it can be mapped.
        copy = scratch.copy(path, start, length)
        try:
            tensor = read_torch_file(copy, shown=f"{path}: {name}")
        finally:
            copy.unlink(missing_ok=True)
        if type(tensor) not in (torch.Tensor, torch.nn.Parameter) or (
            tuple(tensor.shape),
            tensor.dtype,
        ) != (
            shape,
            dtype,
        ):
            raise WeightsError(f"{path}: {name} is not the {list(shape)} {dtype} that {METADATA} says")
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise WeightsError(f"{path}: {name} is larger than the memory it was saved with")
        return tensor.detach()

    return load


def _inside(folder: Path, name: str) -> Path:
    """The file ``name`` of ``folder``, not outside of it, by whatever links."""
    relative = PurePosixPath(name)
    path = folder / relative
    if (
        relative.is_absolute()
        or ".." in relative.parts
        or not path.resolve().is_relative_to(folder.resolve())
    ):
        raise WeightsError(f"{folder / METADATA}: names the file {name}, which is outside of the folder")
    return path


def _shape(sizes: Any) -> tuple[int, ...]:
    return tuple(int(size) for size in sizes)

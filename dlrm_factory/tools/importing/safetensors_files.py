"""Safetensors files, one or a folder of them → weights in pieces.

A folder may hold whole tensors split over files, or shards, as torch.distributed.checkpoint's
`HuggingFaceStorageWriter` and so `dlrm train --checkpoint-dir` write them: a file's header then has the place of
each of its tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError, safe_open

from dlrm_factory.errors import WeightsError
from dlrm_factory.tools.importing.weights import Piece, Source, SourceWeight

__all__ = ["read_safetensors"]

_PLACES = "DCP_SHARDING_INFO"
_OWN_METADATA = "dlrm"
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class _Place(msgspec.Struct):
    saved_offsets: list[int]


def read_safetensors(paths: Sequence[Path], place: Path) -> Source:
    """The weights of ``paths``. WeightsError if a file is damaged."""
    pieces: dict[str, list[Piece]] = {}
    dtypes: dict[str, torch.dtype] = {}
    sharded: set[str] = set()
    for path in paths:
        try:
            file = safe_open(path, framework="pt")
            places = _places(file.metadata() or {}, path)
            for name in file.keys():  # noqa: SIM118
                part = file.get_slice(name)
                shape = tuple(part.get_shape())
                dtype = _DTYPES.get(str(part.get_dtype()), torch.uint8)
                offsets = (0,) * len(shape)
                if name in places:
                    offsets = tuple(places[name].saved_offsets)
                    sharded.add(name)
                if len(offsets) != len(shape) or min(offsets, default=0) < 0:
                    raise WeightsError(
                        f"{path}: the place of {name} is {list(offsets)}, its shape {list(shape)}"
                    )
                if dtypes.setdefault(name, dtype) != dtype:
                    raise WeightsError(f"{path}: {name} is {dtype} here and {dtypes[name]} in another file")
                if name in pieces and name not in sharded:
                    raise WeightsError(
                        f"{name}: is in {pieces[name][0].origin} and in {path}; give one of them"
                    )
                load = _loader(file, name)
                piece = Piece(offsets=offsets, shape=shape, origin=str(path), load=load)
                pieces.setdefault(name, []).append(piece)
        except (SafetensorError, OSError, ValueError, RuntimeError) as error:
            raise WeightsError(f"{path}: is not a whole safetensors file: {error}") from None
    weights = {
        name: SourceWeight(name=name, shape=_shape(parts), dtype=dtypes[name], pieces=tuple(parts))
        for name, parts in pieces.items()
        if not (name.startswith("held_out.") or name == "vocabularies")
    }
    count = f"{len(paths)} safetensors files" if len(paths) > 1 else "safetensors file"
    return Source(kind=count, place=str(place), weights=weights)


def _shape(pieces: Sequence[Piece]) -> tuple[int, ...]:
    """Of the whole weight: as far as its pieces reach. A missing last piece shows as a wrong shape."""
    ends = [tuple(a + n for a, n in zip(p.offsets, p.shape, strict=True)) for p in pieces]
    if len({len(end) for end in ends}) != 1:
        raise WeightsError(f"{pieces[0].origin}: a weight has shards of different dimensions")
    return tuple(max(sizes) for sizes in zip(*ends, strict=True))


def _places(metadata: dict[str, str], path: Path) -> dict[str, _Place]:
    try:
        return msgspec.json.decode(metadata.get(_PLACES, "{}"), type=dict[str, _Place])
    except msgspec.MsgspecError as error:
        raise WeightsError(f"{path}: its header's {_PLACES} cannot be read: {error}") from None


def _loader(file: Any, name: str) -> Callable[[], torch.Tensor]:
    return lambda: file.get_tensor(name)

"""Files and folders that a user names, each opened by the reader for it; safetensors files are read here.

A folder of safetensors may hold whole tensors split over files, or shards, as torch.distributed.checkpoint's
`HuggingFaceStorageWriter` and so `dlrm train --checkpoint-dir` write them: a file's header then has the place of
each of its tensors. Snapshots of `dlrm train` keep each table in parts by columns, which are named after them.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import msgspec
import torch
from safetensors import SafetensorError, safe_open

from dlrm_factory.errors import WeightsError
from dlrm_factory.tools.importing.dcp_folder import METADATA, read_dcp_folder
from dlrm_factory.tools.importing.rank_files import read_rank_files
from dlrm_factory.tools.importing.torch_file import is_torch_file
from dlrm_factory.tools.importing.weights import Piece, Scratch, Source, SourceWeight

__all__ = [
    "BEST",
    "SourceFormat",
    "open_source",
]

BEST = "best/"  # what early stopping keeps
_PART = re.compile(r"(tables/.+/weight)/columns-(\d{1,9})-(\d{1,9})")

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
SourceFormat = Literal["auto", "torchrec", "dlrm_s_pytorch", "dcp", "safetensors"]
_TORCH_ENDINGS = (".pt", ".pth", ".bin", ".ckpt")
_MAX_HEADER = 100 << 20  # what safetensors itself takes


def join_columns(source: Source) -> Source:
    """``source`` with each table's parts put together to one weight, whose pieces they are."""
    weights: dict[str, SourceWeight] = {}
    notes = list(source.notes)
    for name, part in source.weights.items():
        match = _PART.fullmatch(name)
        if match is None or len(part.shape) != 2:
            weights[name] = part
            continue
        table, first = match.group(1), int(match.group(2))
        pieces = tuple(_moved(piece, first) for piece in part.pieces)
        shape = (part.shape[0], first + part.shape[1])
        if table in weights:
            known = weights[table]
            pieces = known.pieces + pieces
            shape = (max(shape[0], known.shape[0]), max(shape[1], known.shape[1]))
        weights[table] = SourceWeight(name=table, shape=shape, dtype=part.dtype, pieces=pieces)
    if any(name.startswith(BEST) for name in weights):
        notes.append("the weights are those of the last step, not the best ones that early stopping keeps")
    return Source(kind=source.kind, place=source.place, weights=weights, notes=notes)


def _moved(piece: Piece, columns: int) -> Piece:
    return replace(piece, offsets=(piece.offsets[0], piece.offsets[1] + columns))


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
        if not (name.startswith(("held_out.", "seen_ids.")) or name == "vocabularies")
    }
    count = f"{len(paths)} safetensors files" if len(paths) > 1 else "safetensors file"
    return Source(kind=count, place=str(place), weights=weights)


def _shape(pieces: Sequence[Piece]) -> tuple[int, ...]:
    """Shape of the whole weight: as far as its pieces reach. A missing last piece shows as a wrong shape."""
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


def open_source(paths: Sequence[Path], source_format: SourceFormat, scratch: Scratch) -> Source:
    """A file, the files of several ranks, or a folder. WeightsError if it is none that can be read."""
    if not paths:
        raise WeightsError("no weights are given; name a file, the files of all ranks, or a folder")
    for path in paths:
        if not path.exists():
            raise WeightsError(f"{path}: there is no such file or folder")
    folders = [path for path in paths if path.is_dir()]
    if folders and len(paths) > 1:
        raise WeightsError(f"{folders[0]}: is a folder; give one folder, or files")
    if folders:
        return _open_folder(paths[0], source_format, scratch)
    return _open_files(paths, source_format, paths[0])


def _open_folder(folder: Path, source_format: SourceFormat, scratch: Scratch) -> Source:
    try:
        files = sorted((p for p in folder.iterdir() if not p.is_dir()), key=_natural)
    except OSError as error:
        raise WeightsError(f"{folder}: cannot be read: {error}") from None
    for path in files:
        if not path.resolve().is_relative_to(folder.resolve()):
            raise WeightsError(
                f"{path}: is a link to {path.resolve()}, outside of the folder; name that file itself"
            )
    if (folder / METADATA).is_file() and source_format != "safetensors":
        return read_dcp_folder(folder, scratch)
    if source_format == "dcp" and not any(path.suffix == ".safetensors" for path in files):
        raise WeightsError(f"{folder}: has no {METADATA}, so it is no folder of torch.distributed.checkpoint")
    tensors = [path for path in files if path.suffix == ".safetensors"]
    ranks = [path for path in files if path.suffix in _TORCH_ENDINGS]
    if bool(tensors) == bool(ranks):
        found = "both safetensors and torch.save files" if tensors else f"neither {METADATA} nor weights"
        raise WeightsError(f"{folder}: has {found}; name the files themselves")
    return _open_files(tensors or ranks, source_format, folder)


def _open_files(paths: Sequence[Path], source_format: SourceFormat, place: Path) -> Source:
    if source_format == "dcp" and not place.is_dir():
        raise WeightsError(f"{place}: is a file; --format dcp reads a folder of torch.distributed.checkpoint")
    try:
        are_torch = [is_torch_file(path) for path in paths]
    except OSError as error:
        raise WeightsError(f"{place}: cannot be read: {error}") from None
    if not any(are_torch) and all(_is_safetensors(path) for path in paths):
        return join_columns(read_safetensors(paths, place))
    if source_format == "safetensors":
        raise WeightsError(f"{place}: is not a safetensors file")
    return read_rank_files(paths)


def _is_safetensors(path: Path) -> bool:
    if path.suffix == ".safetensors":
        return True
    with path.open("rb") as file:
        start = file.read(9)
    return len(start) == 9 and struct.unpack("<Q", start[:8])[0] <= _MAX_HEADER and start[8:] == b"{"


def _natural(path: Path) -> list[tuple[int, str]]:
    """rank2 before rank10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path.name)]

"""What lies at the paths that a user gives, opened by the reader for it."""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from dlrm_factory.errors import WeightsError
from dlrm_factory.tools.importing.dcp_folder import METADATA, read_dcp_folder
from dlrm_factory.tools.importing.rank_files import read_rank_files
from dlrm_factory.tools.importing.safetensors_files import read_safetensors
from dlrm_factory.tools.importing.scratch import Scratch
from dlrm_factory.tools.importing.snapshots import join_columns
from dlrm_factory.tools.importing.torch_file import is_torch_file
from dlrm_factory.tools.importing.weights import Source

__all__ = ["SourceFormat", "open_source"]

SourceFormat = Literal["auto", "torchrec", "dlrm_s_pytorch", "dcp", "safetensors"]

_TORCH_ENDINGS = (".pt", ".pth", ".bin", ".ckpt")
_MOST_HEADER = 100 << 20  # what safetensors itself takes


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
    return len(start) == 9 and struct.unpack("<Q", start[:8])[0] <= _MOST_HEADER and start[8:] == b"{"


def _natural(path: Path) -> list[tuple[int, str]]:
    """rank2 before rank10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path.name)]

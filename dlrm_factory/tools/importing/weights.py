"""Weights of a source, in pieces, and their conversion to float32 tensors in memory or scratch files."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from types import TracebackType

import torch

from dlrm_factory.errors import WeightsError
from dlrm_factory.host.mapped_pages import MappedPages

__all__ = [
    "Piece",
    "Scratch",
    "Source",
    "SourceWeight",
    "float_tensor",
    "own_copy",
    "whole_piece",
]

Shape = tuple[int, ...]

_SMALL = 1 << 20  # elements; below it a tensor is made in memory
_COPY = 16 << 20
_BLOCK = 1 << 20  # elements in memory at once


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A block of a weight.

    Fields:
        offsets: of its first element, one a dimension.
        shape: as many.
        origin: the file it lies in, for messages.
        load: reads it: a tensor of ``shape`` on the CPU, mapped from the file where that is possible.
    """

    offsets: Shape
    shape: Shape
    origin: str
    load: Callable[[], torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class SourceWeight:
    """A weight as its source names it. ``pieces`` need not be whole yet: `tiling` checks that."""

    name: str
    shape: Shape
    dtype: torch.dtype
    pieces: tuple[Piece, ...]


@dataclass(frozen=True, kw_only=True)
class Source:
    """An opened source.

    Fields:
        kind: what it is, for people: ``torch.save file``, ``safetensors``, ….
        weights: by their names in the source, in its order.
        place: the file or folder, for messages.
        notes: what a user should know, one line each.
    """

    kind: str
    place: str
    weights: dict[str, SourceWeight]
    notes: list[str] = field(default_factory=list)


def whole_piece(shape: Iterable[int], origin: str, load: Callable[[], torch.Tensor]) -> Piece:
    """A piece that is all of its weight."""
    shape = tuple(shape)
    if any(size < 0 for size in shape):
        raise WeightsError(f"{origin}: holds a weight with the shape {shape}; the file is damaged")
    return Piece(offsets=(0,) * len(shape), shape=shape, origin=origin, load=load)


class Scratch:
    """A hidden folder beside the output, gone when the context ends. Pages of tensors in it can be given back."""

    def __init__(self, beside: Path) -> None:
        try:
            beside.mkdir(parents=True, exist_ok=True)
            self._folder = Path(tempfile.mkdtemp(prefix=".dlrm-import-", dir=beside))
        except OSError as error:
            raise WeightsError(f"{beside}: cannot be written: {error}") from None
        self._made = 0

    def __enter__(self) -> Scratch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def empty(self, shape: Sequence[int]) -> torch.Tensor:
        """A float32 tensor of ``shape`` to be written to. WeightsError if the disk has no room for it."""
        size = prod(shape)
        if size < _SMALL:
            return torch.empty(tuple(shape), dtype=torch.float32)
        path = self._path()
        try:
            with path.open("wb") as file:
                # A sparse file on a full disk would end the process when it is written to.
                os.posix_fallocate(file.fileno(), 0, 4 * size)
            return torch.from_file(str(path), shared=True, size=size, dtype=torch.float32).view(tuple(shape))
        except OSError as error:
            raise WeightsError(
                f"{self._folder.parent}: has no room for {4 * size} bytes on the way: {error}"
            ) from None
        finally:
            path.unlink(missing_ok=True)

    def copy(self, source: Path, offset: int, length: int) -> Path:
        """A file with the bytes [offset, offset + length) of ``source``; the caller deletes it."""
        path = self._path()
        try:
            with source.open("rb") as read, path.open("wb") as write:
                read.seek(offset)
                left = length
                while left:
                    block = read.read(min(left, _COPY))
                    if not block:
                        raise WeightsError(
                            f"{source}: ends before byte {offset + length}; it was cut short, fetch it again"
                        )
                    write.write(block)
                    left -= len(block)
        except OSError as error:
            raise WeightsError(f"{source}: cannot be copied on the way: {error}") from None
        return path

    def _path(self) -> Path:
        self._made += 1
        return self._folder / str(self._made)


def float_tensor(
    weight: SourceWeight,
    scratch: Scratch,
    *,
    columns: Sequence[int] | None = None,
    progress: Callable[[int], None] = lambda size: None,
) -> torch.Tensor:
    """The whole weight, contiguous. One that lies so in its file is passed through, mapped.

    Args:
        columns: for each column of the result, the weight's.
        progress: called with the bytes just done.

    Raises:
        WeightsError: it holds a number that is not finite, as float32.
    """
    if columns is None and len(weight.pieces) == 1 and weight.dtype == torch.float32:
        tensor = weight.pieces[0].load()
        if tensor.is_contiguous():
            for _ in _blocks(weight, tensor, progress):
                pass
            return tensor
    whole = scratch.empty(weight.shape)
    pages = MappedPages(whole)
    for piece in weight.pieces:
        target = whole[
            tuple(slice(at, at + size) for at, size in zip(piece.offsets, piece.shape, strict=True))
        ]
        for first, block in _blocks(weight, piece.load(), progress):
            if block.dim():
                target[first : first + len(block)] = block
                pages.release(target[first : first + len(block)])
            else:
                target.copy_(block)
    return whole if columns is None else whole[:, list(columns)].contiguous()


def own_copy(tensor: torch.Tensor, scratch: Scratch) -> torch.Tensor:
    """Copy a float32 tensor, which may be mapped, into memory or a scratch file of its own."""
    copy = scratch.empty(tensor.shape)
    read, written = MappedPages(tensor), MappedPages(copy)
    for source, target in zip(tensor.reshape(-1).split(_BLOCK), copy.reshape(-1).split(_BLOCK), strict=True):
        target.copy_(source)
        read.release(source)
        written.release(target)
    return copy


def _blocks(
    weight: SourceWeight, tensor: torch.Tensor, progress: Callable[[int], None]
) -> Iterator[tuple[int, torch.Tensor]]:
    """(first row, rows as float32) of ``tensor``, each block checked; mapped pages of those before are given back."""
    pages = MappedPages(tensor)
    rows = max(1, _BLOCK // max(1, tensor[:1].numel())) if tensor.dim() else 1
    for first in range(0, len(tensor) if tensor.dim() else 1, rows):
        block = tensor[first : first + rows] if tensor.dim() else tensor
        values = block.to(torch.float32)
        if not bool(torch.isfinite(values).all()):
            where = f" in rows {first} to {first + len(block) - 1}" if tensor.dim() else ""
            raise WeightsError(f"{weight.name}: holds NaN or infinity{where}; a model with it scores NaN")
        yield first, values
        pages.release(block)
        progress(values.numel() * 4)

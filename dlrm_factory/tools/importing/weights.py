"""What every source is read into: weights by name, each in one or more pieces that are read when asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch

from dlrm_factory.errors import WeightsError

__all__ = ["Piece", "Source", "SourceWeight", "whole_piece"]

Shape = tuple[int, ...]


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

"""A matched weight → one float32 tensor, a block of rows at a time; its numbers are looked through on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch

from dlrm_factory.errors import WeightsError
from dlrm_factory.tools.importing.scratch import Scratch
from dlrm_factory.tools.importing.weights import SourceWeight

__all__ = ["float_tensor"]

_BLOCK = 4 << 20  # elements


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
    for piece in weight.pieces:
        target = whole[
            tuple(slice(at, at + size) for at, size in zip(piece.offsets, piece.shape, strict=True))
        ]
        for first, block in _blocks(weight, piece.load(), progress):
            if block.dim():
                target[first : first + len(block)] = block
            else:
                target.copy_(block)
    return whole if columns is None else whole[:, list(columns)].contiguous()


def _blocks(
    weight: SourceWeight, tensor: torch.Tensor, progress: Callable[[int], None]
) -> Iterator[tuple[int, torch.Tensor]]:
    """(first row, rows as float32) of ``tensor``, each block checked."""
    rows = max(1, _BLOCK // max(1, tensor[:1].numel())) if tensor.dim() else 1
    for first in range(0, len(tensor) if tensor.dim() else 1, rows):
        block = tensor[first : first + rows] if tensor.dim() else tensor
        values = block.to(torch.float32)
        if not bool(torch.isfinite(values).all()):
            where = f" in rows {first} to {first + len(block) - 1}" if tensor.dim() else ""
            raise WeightsError(f"{weight.name}: holds NaN or infinity{where}; a model with it scores NaN")
        yield first, values
        progress(values.numel() * 4)

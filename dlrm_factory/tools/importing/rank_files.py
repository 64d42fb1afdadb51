"""Files of `torch.save`, one or one a rank → weights in pieces."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from dlrm_factory.errors import WeightsError
from dlrm_factory.host.mapped_pages import MappedPages
from dlrm_factory.tools.importing.torch_file import (
    REMEDY,
    Record,
    SavedDTensor,
    SavedLocalShards,
    SavedShard,
    SavedShardedTensor,
    SavedTensor,
    read_torch_file,
)
from dlrm_factory.tools.importing.weights import Piece, Source, SourceWeight, whole_piece

__all__ = ["read_rank_files"]

_DEEPEST = 6
_MAX_LEAVES = 1_000_000
_COMPARED = 1 << 20  # elements at a time


def read_rank_files(paths: Sequence[Path]) -> Source:
    """The weights of ``paths``, in pieces. WeightsError if a file cannot be loaded safely, or ranks disagree."""
    weights: dict[str, SourceWeight] = {}
    for path in paths:
        loaded = read_torch_file(path)
        if not isinstance(loaded, dict):
            raise WeightsError(f"{path}: holds {_kind(loaded)}, not a state dict; {REMEDY}")
        try:
            leaves = list(islice(_leaves(loaded), _MAX_LEAVES + 1))
            if len(leaves) > _MAX_LEAVES:  # a few dicts that hold each other have endlessly many
                raise WeightsError(f"{path}: holds more than {_MAX_LEAVES:,} values; {REMEDY}")
            found = {name: _weight(name, value, path) for name, value in leaves if value is not None}
        except (TypeError, ValueError, AttributeError, RuntimeError, KeyError, IndexError) as error:
            raise WeightsError(f"{path}: is damaged: a sharded tensor is not whole ({error})") from None
        if not found:
            raise WeightsError(f"{path}: holds no tensors; {REMEDY}")
        for name, weight in found.items():
            weights[name] = _joined(weights[name], weight) if name in weights else weight
    count = "" if len(paths) == 1 else f"{len(paths)} "
    kind = f"{count}torch.save file{'s' if count else ''}"
    return Source(kind=kind, place=", ".join(map(str, paths)), weights=weights)


def _leaves(
    value: dict[Any, Any], prefix: str = "", depth: int = 0
) -> Iterator[tuple[str, torch.Tensor | None]]:
    """Every tensor by its path, and None for what is no tensor: losses, counters, options."""
    for key, child in value.items():
        name = f"{prefix}{key}"
        if isinstance(child, torch.Tensor):
            yield name, child
        elif isinstance(child, dict) and depth < _DEEPEST:
            yield from _leaves(child, f"{name}.", depth + 1)
        else:
            yield name, None


def _weight(name: str, tensor: torch.Tensor, path: Path) -> SourceWeight:
    if isinstance(tensor, SavedShardedTensor):
        pieces = [_shard_piece(shard, path) for shard in tensor.fields["0"]]
    elif isinstance(tensor, SavedDTensor):
        pieces = _local_pieces(name, tensor, path)
    else:
        _check_plain(name, tensor, path)
        pieces = [whole_piece(tensor.shape, str(path), _given(tensor.detach()))]
    return SourceWeight(name=name, shape=tuple(tensor.shape), dtype=tensor.dtype, pieces=tuple(pieces))


def _shard_piece(shard: Any, path: Path) -> Piece:
    if not isinstance(shard, SavedShard):
        raise TypeError(f"{_kind(shard)} in place of a shard")
    return _piece(shard.get("tensor"), shard.get("metadata").get("shard_offsets"), path)


def _local_pieces(name: str, tensor: SavedDTensor, path: Path) -> list[Piece]:
    local = tensor.fields["_local_tensor"]
    if isinstance(local, SavedLocalShards):
        chunks = local.fields["_storage_meta"].get("chunks")
        shards = local.fields["_local_shards"]
        return [
            _piece(shard, chunk.get("offsets"), path) for shard, chunk in zip(shards, chunks, strict=False)
        ]
    if local.shape != tensor.shape:
        raise WeightsError(
            f"{path}: {name} is {list(local.shape)} of a DTensor {list(tensor.shape)}, and the file does not say "
            f"which part; {REMEDY}"
        )
    return [_piece(local, [0] * local.dim(), path)]


def _piece(tensor: Any, offsets: Any, path: Path) -> Piece:
    if not isinstance(tensor, torch.Tensor) or isinstance(tensor, SavedTensor):
        raise TypeError(f"{_kind(tensor)} in place of a shard's tensor")
    _check_plain("a shard", tensor, path)
    offsets = tuple(int(offset) for offset in offsets)
    return Piece(offsets=offsets, shape=tuple(tensor.shape), origin=str(path), load=_given(tensor.detach()))


def _check_plain(name: str, tensor: torch.Tensor, path: Path) -> None:
    """A dense tensor with memory of its own: one that repeats a few bytes could be larger than any memory."""
    if tensor.is_quantized:
        raise WeightsError(f"{path}: {name} is quantised; import the float weights it was made from")
    if tensor.layout is not torch.strided or tensor.device.type != "cpu":
        raise WeightsError(f"{path}: {name} is a {tensor.layout} tensor on {tensor.device}, not a plain one")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise WeightsError(f"{path}: {name} is larger than the memory it was saved with; save it contiguous")


def _joined(known: SourceWeight, weight: SourceWeight) -> SourceWeight:
    """The pieces of both; of a weight that every rank has whole, one."""
    first, other = known.pieces, weight.pieces
    origins = f"{known.pieces[0].origin if first else '?'} and {other[0].origin if other else '?'}"
    if known.shape != weight.shape or known.dtype != weight.dtype:
        raise WeightsError(
            f"{weight.name}: is {list(known.shape)} {known.dtype} and {list(weight.shape)} {weight.dtype} in "
            f"{origins}; these are not files of the ranks of one model"
        )
    is_replica = bool(first and other) and all(p.shape == weight.shape for p in (first[0], other[0]))
    if not is_replica:
        pieces = first + other
    elif len(other) == 1 and _are_equal(first[0], other[0]):
        pieces = first
    else:
        raise WeightsError(
            f"{weight.name}: differs between {origins}; ranks of one model keep equal copies of it"
        )
    return SourceWeight(name=weight.name, shape=weight.shape, dtype=weight.dtype, pieces=pieces)


def _are_equal(first: Piece, other: Piece) -> bool:
    one, two = first.load().reshape(-1), other.load().reshape(-1)
    pages = MappedPages(one), MappedPages(two)
    for blocks in zip(one.split(_COMPARED), two.split(_COMPARED), strict=True):
        if not torch.equal(*blocks):
            return False
        for mapped, block in zip(pages, blocks, strict=True):
            mapped.release(block)
    return True


def _given(tensor: torch.Tensor) -> Callable[[], torch.Tensor]:
    return lambda: tensor


def _kind(value: Any) -> str:
    return "an object of a class" if isinstance(value, Record) else f"a {type(value).__name__}"

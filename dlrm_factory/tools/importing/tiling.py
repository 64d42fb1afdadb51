"""Whether the pieces of a weight are all of it, once."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from dlrm_factory.tools.importing.weights import Piece, SourceWeight

__all__ = ["tiling_problems"]

_MOST = 3  # of one weight; the rest is alike
Span = tuple[int, int]


def tiling_problems(weight: SourceWeight) -> list[str]:
    """What is missing, there twice or out of bounds, naming rows; empty if the pieces tile the weight."""
    if len(weight.pieces) == 1 and weight.pieces[0].shape == weight.shape:
        return [] if not any(weight.pieces[0].offsets) else [f"{weight.name}: its only shard is out of place"]
    outside = [piece for piece in weight.pieces if not _is_inside(piece, weight)]
    if outside:
        piece = outside[0]
        return [
            f"{weight.name}: {piece.origin} has a shard {list(piece.shape)} at {list(piece.offsets)}, outside of "
            f"{list(weight.shape)}"
        ]
    if len(weight.shape) not in (1, 2):
        return [f"{weight.name}: has {len(weight.shape)} dimensions and {len(weight.pieces)} shards"]
    found: list[str] = []
    for problem in _problems(weight):
        if len(found) == _MOST:
            found.append(f"{weight.name}: and more rows")
            break
        found.append(problem)
    return found


def _is_inside(piece: Piece, weight: SourceWeight) -> bool:
    sizes = (piece.offsets, piece.shape, weight.shape)
    if len({len(each) for each in sizes}) != 1:
        return False
    return all(at >= 0 <= n and at + n <= whole for at, n, whole in zip(*sizes, strict=True))


def _problems(weight: SourceWeight) -> Iterator[str]:
    width = weight.shape[1] if len(weight.shape) == 2 else 1
    pieces = [(_rows(piece), _columns(piece), piece) for piece in weight.pieces if 0 not in piece.shape]
    waiting = sorted(pieces, key=lambda piece: piece[0], reverse=True)
    here: list[tuple[Span, Span, Piece]] = []  # those with rows [first, last)
    cuts = sorted({0, weight.shape[0], *(cut for rows, _, _ in pieces for cut in rows)})
    for first, last in pairwise(cuts):
        here = [piece for piece in here if piece[0][1] > first]
        while waiting and waiting[-1][0][0] == first:
            here.append(waiting.pop())
        at = 0
        for _, (start, stop), piece in sorted(here, key=lambda piece: piece[1]):
            if start > at:
                yield _missing(weight, (first, last), (at, start), width)
            elif start < at:
                yield f"{weight.name}: {_shown('rows', first, last)} are there twice, again in {piece.origin}"
            at = max(at, stop)
        if at < width:
            yield _missing(weight, (first, last), (at, width), width)


def _rows(piece: Piece) -> Span:
    return piece.offsets[0], piece.offsets[0] + piece.shape[0]


def _columns(piece: Piece) -> Span:
    return (0, 1) if len(piece.shape) == 1 else (piece.offsets[1], piece.offsets[1] + piece.shape[1])


def _missing(weight: SourceWeight, rows: Span, columns: Span, width: int) -> str:
    part = "" if columns == (0, width) else f", {_shown('columns', *columns)},"
    origins = ", ".join(dict.fromkeys(piece.origin for piece in weight.pieces[:4]))
    where = f" from {origins}" if origins else ""
    return f"{weight.name}: {_shown('rows', *rows)}{part} are missing{where}; give the files of all ranks"


def _shown(what: str, first: int, last: int) -> str:
    return f"{what} {first} to {last - 1}"

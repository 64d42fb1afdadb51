"""Tables of `dlrm train --checkpoint-dir`: each in parts by columns, which are named after them."""

from __future__ import annotations

import re
from dataclasses import replace

from dlrm_factory.tools.importing.weights import Piece, Source, SourceWeight

__all__ = ["BEST", "join_columns"]

BEST = "best/"  # what early stopping keeps
_PART = re.compile(r"(tables/.+/weight)/columns-(\d{1,9})-(\d{1,9})")


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

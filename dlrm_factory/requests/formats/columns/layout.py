"""The columns of a body, sorted into those of the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dlrm_factory.config import DLRMDeclaration
from dlrm_factory.requests.formats.fast.doubt import Doubt

__all__ = ["Layout", "Layouts"]

_MOST_LAYOUTS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Where the columns of one list of names go.

    Fields:
        names: as sent.
        dense, sparse: positions of the features sent, in declared order.
        dense_keys, sparse_keys: their names in UTF-8.
        absent: positions of the sparse features that were not sent.
        columns: how many were sent.
    """

    names: tuple[str, ...]
    dense: list[int]
    dense_keys: list[bytes]
    sparse: list[int]
    sparse_keys: list[bytes]
    absent: list[int]
    columns: int


class Layouts:
    """Layouts by the names sent. A client sends the same names again and again, so they are kept."""

    def __init__(self, declaration: DLRMDeclaration) -> None:
        self._dense = declaration.dense_names
        self._sparse = declaration.sparse_names
        self._known = {*self._dense, *self._sparse}
        self._kept: dict[tuple[str, ...], Layout] = {}

    def of(self, names: tuple[str, ...]) -> Layout:
        """Doubt if a name is not a feature, or is there twice."""
        layout = self._kept.get(names)
        if layout is None:
            layout = self._sort(names)
            if len(self._kept) < _MOST_LAYOUTS:
                self._kept[names] = layout
        return layout

    def _sort(self, names: tuple[str, ...]) -> Layout:
        sent = set(names)
        if not sent or len(sent) != len(names) or not sent <= self._known:
            raise Doubt
        dense, sparse = _positions(self._dense, sent), _positions(self._sparse, sent)
        return Layout(
            names=names,
            dense=dense,
            dense_keys=[self._dense[i].encode() for i in dense],
            sparse=sparse,
            sparse_keys=[self._sparse[i].encode() for i in sparse],
            absent=sorted(set(range(len(self._sparse))) - set(sparse)),
            columns=len(sent),
        )


def _positions(names: Sequence[str], sent: set[str]) -> list[int]:
    return [i for i, name in enumerate(names) if name in sent]

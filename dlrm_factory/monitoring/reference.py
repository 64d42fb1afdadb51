"""``reference.json``: distribution of scores, dense features and ids where the model was trained.

Dense features and scores are counted in bins between quantiles. Ids are counted by popularity: an id falls into a
cell, its table row or a hash of it, and cells of like popularity share a bin, so that ids nobody knew before show, and
popular ids that are popular no more.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import msgspec

from dlrm_factory.config import DLRMDeclaration
from dlrm_factory.errors import WeightsError
from dlrm_factory.weights.seal import REFERENCE_FILE

__all__ = ["MAX_CELLS", "IdBins", "NumberBins", "Reference", "read_reference", "write_reference"]

# Of one feature. A bin's number is one hexadecimal digit.
MAX_CELLS = 1024
_MAX_BYTES = 64 << 20
_Share = Annotated[float, msgspec.Meta(gt=0, le=1)]


class _Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An unknown field is an error."""


class NumberBins(_Strict, frozen=True, kw_only=True):
    """Bins of a number: up to the first edge, from there up to the second, ..., above the last.

    Fields:
        edges: ascending, as the model gets the number: after the declared transform; logits of scores.
        shares: of samples, one for each bin.
    """

    edges: list[float]
    shares: list[_Share]


class IdBins(_Strict, frozen=True, kw_only=True):
    """Bins of ids.

    Fields:
        cells: the bin of each cell, a hexadecimal digit. The cell of a table row is the row where there are as many
            cells as rows, else its SplitMix64 hash mod the number of cells.
        shares: of ids and empty bags, one for each bin and one for empty bags.
    """

    cells: str
    shares: list[_Share]


class Reference(_Strict, frozen=True, kw_only=True):
    """Distribution of ``samples`` samples that training held out."""

    format: Literal[1] = 1
    samples: int
    mean_label: float
    mean_score: float
    scores: NumberBins
    dense: dict[str, NumberBins]
    sparse: dict[str, IdBins]

    def check(self, declaration: DLRMDeclaration, source: str) -> None:
        """WeightsError, naming ``source``, unless the bins are of the declared features and whole."""
        if [*self.dense, *self.sparse] != [*declaration.dense_names, *declaration.sparse_names]:
            raise WeightsError(f"{source}: is not of the declared features; make the archive again")
        for name, bins in {"the scores": self.scores, **self.dense}.items():
            if len(bins.shares) != len(bins.edges) + 1 or bins.edges != sorted(bins.edges):
                raise WeightsError(f"{source}: its bins of {name} are not whole; make the archive again")
        for feature in declaration.sparse_features:
            ids = self.sparse[feature.name]
            cells = min(declaration.table(feature.table).num_embeddings, MAX_CELLS)
            digits = "0123456789abcdef"[: max(len(ids.shares) - 1, 0)]
            if len(ids.cells) != cells or not set(ids.cells) <= set(digits):
                raise WeightsError(
                    f"{source}: its bins of {feature.name} are not whole; make the archive again"
                )


def read_reference(folder: Path, declaration: DLRMDeclaration) -> Reference | None:
    """The reference of the sealed weights in ``folder``; None if they have none. WeightsError if damaged."""
    path = folder / REFERENCE_FILE
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise WeightsError(f"{path}: is larger than {_MAX_BYTES} bytes; make the archive again")
        reference = msgspec.json.decode(data, type=Reference)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, OSError) as error:
        raise WeightsError(f"{path}: cannot be read: {error}; make the archive again") from None
    reference.check(declaration, str(path))
    return reference


def write_reference(reference: Reference, folder: Path) -> None:
    """Keep ``reference`` with the sealed weights in ``folder``; they must be sealed after it."""
    (folder / REFERENCE_FILE).write_bytes(msgspec.json.encode(reference) + b"\n")

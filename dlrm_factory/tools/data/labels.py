"""Labels of rows, one a probability: 0, 1, or none where a row does not count for an output."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from dlrm_factory.config.declaration import DLRMDeclaration
from dlrm_factory.config.label import Comparison, parse_label
from dlrm_factory.features import shown
from dlrm_factory.features.arrow import is_text
from dlrm_factory.tools.data.bad_rows import Place
from dlrm_factory.tools.data.numbers import encode_numbers, plain_text
from dlrm_factory.weights.held_out import UNLABELLED

__all__ = ["counts_for", "encode_label", "encode_labels", "label_codes"]

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]
_BOOLEANS = {"true": "1", "false": "0"}


def encode_labels(
    columns: pa.RecordBatch, declaration: DLRMDeclaration, place: Callable[[str], Place]
) -> Float32:
    """Labels of n rows: float32 [n, probabilities] of 0 and 1, and NaN where the row does not count.

    A row does not count for an output whose ``where`` names one with a label other than 1, nor, where there are
    several probabilities, for one whose cell is empty; of a single one every row needs a label.

    DataError, or ``place`` of the column records, what is no label.
    """
    probabilities = declaration.probabilities
    labels = np.empty((columns.num_rows, len(probabilities)), dtype=np.float32)
    places = {output.name: p for p, output in enumerate(probabilities)}
    for p, output in enumerate(probabilities):
        label = parse_label(declaration.label_of(output))
        labels[:, p] = encode_label(
            columns[label.column],
            place(label.column),
            label.comparison,
            may_miss=len(probabilities) > 1,
        )
        if output.where is not None:
            labels[labels[:, places[output.where]] != 1, p] = np.nan
    return labels


def label_codes(labels: Float32) -> npt.NDArray[np.uint8]:
    """``labels`` in one byte each: 0, 1, and 2 for none."""
    return np.where(np.isnan(labels), np.float32(UNLABELLED), labels).astype(np.uint8)


def counts_for(labels: npt.NDArray[np.uint8] | Float32, place: int) -> npt.NDArray[np.bool_]:
    """Mask of the rows that count for the probability at ``place``, bool [n]; ``labels`` [n, probabilities].

    They are floats with NaN, or `label_codes`.
    """
    found: npt.NDArray[np.bool_] = labels[:, place] <= 1
    return found


def encode_label(
    column: pa.Array, place: Place, comparison: Comparison | None = None, *, may_miss: bool = False
) -> Float32:
    """Clicks: float32 [n] of 0 and 1, from 0/1, true/false; or by a comparison, from any numbers.

    ``may_miss``: an empty cell gives NaN. DataError for anything else.
    """
    raw = column
    if comparison is None and is_text(column.type):
        column = _replaced(pc.utf8_lower(plain_text(column)), _BOOLEANS)
    numbers = encode_numbers(column, place)
    missing = np.isnan(numbers)
    wrong = missing if comparison else (numbers != 0) & (numbers != 1)
    needed = "a number" if comparison else "0 or 1 (or false or true)"

    def refuse(rows: Int64, reason: str) -> None:
        def problem(k: int) -> str:
            found = raw[int(rows[k])].as_py()
            return f"the label is {'nothing' if found is None else shown(found)}; it must be {needed}"

        place.refuse(rows, reason, problem)

    if may_miss:
        wrong = wrong & ~missing
    elif place.wrong is not None:
        refuse(np.flatnonzero(missing), "no label")
    refuse(np.flatnonzero(wrong), f"label is not {needed}")
    clicks = comparison(numbers) if comparison else numbers == 1
    labels: Float32 = (clicks & ~missing).astype(np.float32)
    if may_miss:
        labels[missing] = np.nan
    return labels


def _replaced(text: pa.Array, replacements: dict[str, str]) -> pa.Array:
    for old, new in replacements.items():
        text = pc.if_else(pc.equal(text, old), new, text)
    return text

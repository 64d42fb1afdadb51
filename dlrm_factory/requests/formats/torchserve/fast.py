"""The shape of TorchServe's DLRM example, read into one row of values."""

from __future__ import annotations

from itertools import accumulate, pairwise
from typing import Any

import msgspec
import numpy as np

from dlrm_factory.config import DLRMDeclaration
from dlrm_factory.features import FeatureError
from dlrm_factory.requests.formats.outputs import Asked, ModelOutputs
from dlrm_factory.requests.formats.rows.fast import ASKED_FIELDS, Values, asked_of
from dlrm_factory.requests.formats.shape import FallBack
from dlrm_factory.requests.formats.torchserve.reference import FLOATS, LENGTHS, VALUES, upstream_path

__all__ = ["UpstreamRows", "upstream_row_path"]

_BODY = msgspec.defstruct(
    "Body",
    [
        ("floats", list[float | None]),
        ("lengths", list[int]),
        ("values", list[int | str]),
        *ASKED_FIELDS,
    ],
    rename={"floats": FLOATS, "lengths": LENGTHS, "values": VALUES},
    forbid_unknown_fields=True,
    gc=False,
)


class UpstreamRows:
    """Reads bodies of this shape for a model of so many features, and with ``outputs``."""

    def __init__(self, dense_features: int, sparse_features: int, outputs: ModelOutputs) -> None:
        self._outputs = outputs
        self._dense_features = dense_features
        self._ones = [1] * sparse_features
        self._decode = msgspec.json.Decoder(_BODY).decode

    def read(self, raw: bytes | bytearray) -> tuple[Values, Asked]:
        """The sample's values, and what it asks for. One of `FALL_BACKS` if the body is wrong."""
        body: Any = self._decode(raw)
        floats, lengths, values = body.floats, body.lengths, body.values
        if len(floats) != self._dense_features or len(lengths) != len(self._ones):
            raise FallBack
        if (lengths and min(lengths) < 0) or sum(lengths) != len(values):
            raise FallBack
        if lengths != self._ones:
            values = _bags(lengths, values)
        return (*floats, *values), asked_of(body, self._outputs)


def upstream_row_path(error: FeatureError, declaration: DLRMDeclaration, values: Values) -> str:
    """Path of the wrong value of the sample ``values``, see `RowValues`."""
    bags = values[len(declaration.dense_names) :]
    counts = [0 if bag is None else len(bag) if isinstance(bag, list) else 1 for bag in bags]
    return upstream_path(
        error, declaration.dense_names, declaration.sparse_names, np.array(counts, dtype=np.int32)
    )


def _bags(lengths: list[int], values: list[int | str]) -> list[Any]:
    if max(lengths) <= 1:  # an id, or null for an empty bag, is quicker to encode than a list
        ids = iter(values)
        return [next(ids) if length else None for length in lengths]
    ends = list(accumulate(lengths, initial=0))
    return [values[start:stop] for start, stop in pairwise(ends)]

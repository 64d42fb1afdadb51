"""``instances`` of numbers and strings, read by msgspec into one small struct a row: no dict, no key a value."""

from __future__ import annotations

from typing import Any

import msgspec

from dlrm_factory.features import FeatureError
from dlrm_factory.requests.formats.fast.doubt import DOUBTS
from dlrm_factory.requests.formats.paths import element, member
from dlrm_factory.requests.formats.predictions import predictions
from dlrm_factory.requests.formats.rows.structs import body_decoder, row_type
from dlrm_factory.requests.formats.rows.values import RowValues
from dlrm_factory.requests.formats.shape import DecodedRequest, Output, RequestReader

__all__ = ["RowsReader"]


class RowsReader:
    """Reads rows by name."""

    def __init__(self, reader: RequestReader) -> None:
        declaration = reader.encoder.declaration
        self._max_samples = reader.max_samples
        self._values = RowValues(reader)
        row: Any = row_type(declaration.dense_names, declaration.sparse_names)
        self._decoder = None if row is None else body_decoder("instances", list[row])

    def read(self, raw: bytes) -> DecodedRequest | None:
        """The request, or None if the reference reader must look."""
        if self._decoder is None:
            return None
        try:
            body = self._decoder.decode(raw)
            rows = list(map(msgspec.structs.astuple, body.instances))
            if len(rows) > self._max_samples:
                return None
            batch = self._values.encode(rows)
        except DOUBTS:
            return None
        output: Output = "probability" if body.output is msgspec.UNSET else body.output
        return DecodedRequest(batch=batch, output=output, content=predictions, path_of=_path_of)


def _path_of(error: FeatureError) -> str:
    return member(element("$.instances", error.sample), error.feature)

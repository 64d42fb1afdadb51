"""Requests of one sample each, read together: what NumPy costs a call is paid once for all of them.

Each body is parsed alone, by msgspec into a struct of its shape, so that no body can lean on its neighbour. The values
of all are then checked and encoded at once. If that fails, the requests are halved until those at fault are alone;
they are left to the reader of single requests, whose errors clients see, and the others lose nothing by it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import msgspec

from dlrm_factory.batch.feature_batch import FeatureBatch
from dlrm_factory.requests.formats.fast.doubt import DOUBTS
from dlrm_factory.requests.formats.predictions import predictions
from dlrm_factory.requests.formats.rows.structs import body_decoder, column_type, row_type
from dlrm_factory.requests.formats.rows.values import ABSENT, RowValues, Values
from dlrm_factory.requests.formats.shape import Content, RequestReader
from dlrm_factory.requests.formats.torchserve.fast import UpstreamRows
from dlrm_factory.requests.formats.torchserve.reference import FLOATS, score

__all__ = ["Gathered", "GatheringReader", "Sample"]

# The key that tells the shape stands early, unless "output" is written before it.
_WITHIN = 64
# Longer bodies hold more than one sample, or bags so long that parsing is all that counts.
_MOST_BYTES_A_FEATURE = 256

_FLOATS = f'"{FLOATS}"'.encode()


class Sample(NamedTuple):
    """One request's sample, as it was sent.

    Fields:
        place: of the request.
        values: see `RowValues`.
        as_logit: what its score is to be.
        content: the answer's JSON content, from a list of one score.
    """

    place: int
    values: Values
    as_logit: bool
    content: Content


class Gathered(NamedTuple):
    """Requests whose samples are one batch, in order."""

    samples: Sequence[Sample]
    batch: FeatureBatch


class GatheringReader:
    """Reads requests of one sample: ``inputs``, ``instances`` and TorchServe's own shape."""

    def __init__(self, reader: RequestReader) -> None:
        declaration = reader.encoder.declaration
        names = declaration.dense_names, declaration.sparse_names
        self._values = RowValues(reader)
        self._most_samples = reader.max_samples
        self._nothing = [ABSENT] * len(reader.encoder.names)
        self.most_bytes = _MOST_BYTES_A_FEATURE * (1 + len(reader.encoder.names))
        row: Any = row_type(*names)
        column = column_type(*names)
        self._rows = None if row is None else body_decoder("instances", tuple[row]).decode
        self._columns = None if column is None else body_decoder("inputs", column).decode
        self._upstream = UpstreamRows(len(names[0]), len(names[1]))

    def read(self, bodies: Sequence[tuple[int, bytes | bytearray]]) -> list[Gathered]:
        """The requests among ``bodies``, pairs of place and JSON, that are right; at most max_samples together."""
        found = [sample for place, raw in bodies if (sample := self._sample(place, raw)) is not None]
        most = max(self._most_samples, 1)
        return [
            gathered
            for start in range(0, len(found), most)
            for gathered in self._join(found[start : start + most])
        ]

    def _sample(self, place: int, raw: bytes | bytearray) -> Sample | None:
        try:
            if raw.find(b'"inputs"', 0, _WITHIN) >= 0:
                return self._of_columns(place, raw)
            if raw.find(b'"instances"', 0, _WITHIN) >= 0:
                return self._of_rows(place, raw)
            if raw.find(_FLOATS, 0, _WITHIN) >= 0:
                values, output = self._upstream.read(raw)
                return Sample(place, values, output == "logit", score)
        except DOUBTS:
            pass
        return None

    def _of_columns(self, place: int, raw: bytes | bytearray) -> Sample | None:
        if self._columns is None:
            return None
        body = self._columns(raw)
        values = [value for (value,) in msgspec.structs.astuple(body.inputs)]
        if values == self._nothing:  # without a column nobody knows how many samples there are
            return None
        return Sample(place, values, body.output == "logit", predictions)

    def _of_rows(self, place: int, raw: bytes | bytearray) -> Sample | None:
        if self._rows is None:
            return None
        body = self._rows(raw)
        values = msgspec.structs.astuple(body.instances[0])
        return Sample(place, values, body.output == "logit", predictions)

    def _join(self, samples: Sequence[Sample]) -> Iterator[Gathered]:
        """Batches of all that are right."""
        try:
            yield Gathered(samples, self._values.encode([sample.values for sample in samples]))
        except DOUBTS:
            if len(samples) > 1:
                half = len(samples) // 2
                yield from self._join(samples[:half])
                yield from self._join(samples[half:])

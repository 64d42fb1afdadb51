"""Fast readers of the common bodies. They leave all that they do not take for certain to the reference reader.

A fast reader either gives what the reference (`dlrm_factory.requests.request`, then `dlrm_factory.requests.formats`)
gives, or nothing. It never explains: a body with a mistake is read again by the reference, whose errors are the only
ones that clients see.

Requests of one sample each are read together: what NumPy costs a call is paid once for all of them. Each body is
parsed alone, by msgspec into a struct of its shape, so that no body can lean on its neighbour. The values of all are
then checked and encoded at once. If that fails, the requests are halved until those at fault are alone; they are left
to the reader of single requests, and the others lose nothing by it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import msgspec

from dlrm_factory.batch.feature_batch import FeatureBatch, split
from dlrm_factory.config import DLRMDeclaration
from dlrm_factory.features import FeatureError
from dlrm_factory.requests.formats.columns.fast import ColumnsReader, single_column_path
from dlrm_factory.requests.formats.outputs import Asked
from dlrm_factory.requests.formats.ranking.fast import RankingReader
from dlrm_factory.requests.formats.rows.fast import (
    ABSENT,
    RowsReader,
    RowValues,
    Values,
    asked_of,
    body_decoder,
    column_type,
    row_type,
    single_row_path,
)
from dlrm_factory.requests.formats.shape import (
    FALL_BACKS,
    DecodedRequest,
    PlainForm,
    RequestReader,
    RequestShape,
)
from dlrm_factory.requests.formats.torchserve.fast import UpstreamRows, upstream_row_path
from dlrm_factory.requests.formats.torchserve.reference import FLOATS

__all__ = ["READERS", "FastReaders", "Gathered", "GatheringReader", "ReadCounts", "Sample"]

logger = logging.getLogger(__name__)

READERS = ("gathered", "columns", "rows", "ranking")

# The key that tells the shape stands early, unless "output" is written before it.
_WITHIN = 64
# Longer bodies hold more than one sample, or bags so long that parsing is all that counts.
_MAX_BYTES_A_FEATURE = 256

_CONTEXT, _CANDIDATES = b'"context"', b'"candidates"'
_INPUTS, _INSTANCES, _FLOATS = b'"inputs"', b'"instances"', f'"{FLOATS}"'.encode()

# (error, declaration, the sample's values) → path.
_SamplePath = Callable[[FeatureError, DLRMDeclaration, Values], str]


class Sample(NamedTuple):
    """One request's sample, as it was sent.

    Fields:
        place: of the request.
        values: see `RowValues`.
        asked: outputs that it asks for.
        form: of its answer.
        path: of a wrong value in its body.
        shape: of its body.
    """

    place: int
    values: Values
    asked: Asked
    form: PlainForm
    path: _SamplePath
    shape: RequestShape


class Gathered(NamedTuple):
    """Requests, at least one, whose samples are one batch, in order. All ask for the same outputs."""

    samples: Sequence[Sample]
    batch: FeatureBatch
    declaration: DLRMDeclaration

    @property
    def context(self) -> None:
        """No context: samples of several requests share nothing."""
        return

    @property
    def as_logit(self) -> list[bool]:
        """True for each sample of whose probabilities a logit is given."""
        return [sample.asked.output == "logit" for sample in self.samples]

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs, the same for all."""
        return self.samples[0].asked.names

    def requests(self) -> list[Gathered]:
        """The same samples with one request each."""
        parts = zip(self.samples, split(self.batch, 1), strict=True)
        return [Gathered([sample], batch, self.declaration) for sample, batch in parts]

    def path_of(self, error: FeatureError) -> str:
        """Path in its own request's body of a wrong value of sample ``error.sample``."""
        sample = self.samples[error.sample]
        error = FeatureError(error.message, feature=error.feature, sample=0, position=error.position)
        return sample.path(error, self.declaration, sample.values)


class GatheringReader:
    """Reads requests of one sample: ``inputs``, ``instances`` and TorchServe's own shape."""

    def __init__(self, reader: RequestReader) -> None:
        self._declaration = reader.encoder.declaration
        names = self._declaration.dense_names, self._declaration.sparse_names
        self._values = RowValues(reader)
        self._max_samples = max(reader.max_samples, 1)
        self._nothing = [ABSENT] * len(reader.encoder.names)
        self.max_bytes = _MAX_BYTES_A_FEATURE * (1 + len(reader.encoder.names))
        row: Any = row_type(*names)
        column = column_type(*names)
        self._rows = None if row is None else body_decoder("instances", tuple[row]).decode
        self._columns = None if column is None else body_decoder("inputs", column).decode
        self._outputs = reader.outputs
        self._upstream = UpstreamRows(len(names[0]), len(names[1]), self._outputs)

    def read(self, bodies: Sequence[tuple[int, bytes | bytearray]]) -> list[Gathered]:
        """The requests among ``bodies``, pairs of place and JSON, that are right; at most max_samples together."""
        found: dict[tuple[str, ...], list[Sample]] = {}
        for place, raw in bodies:
            sample = self._sample(place, raw)
            if sample is not None:
                found.setdefault(sample.asked.names, []).append(sample)
        return [
            gathered
            for samples in found.values()
            for start in range(0, len(samples), self._max_samples)
            for gathered in self._join(samples[start : start + self._max_samples])
        ]

    def _sample(self, place: int, raw: bytes | bytearray) -> Sample | None:
        try:
            if raw.find(_INPUTS, 0, _WITHIN) >= 0:
                return self._of_columns(place, raw)
            if raw.find(_INSTANCES, 0, _WITHIN) >= 0:
                return self._of_rows(place, raw)
            if raw.find(_FLOATS, 0, _WITHIN) >= 0:
                values, asked = self._upstream.read(raw)
                return Sample(place, values, asked, PlainForm.SCORE, upstream_row_path, "torchserve")
        except FALL_BACKS:
            pass
        return None

    def _of_columns(self, place: int, raw: bytes | bytearray) -> Sample | None:
        if self._columns is None:
            return None
        body = self._columns(raw)
        values = [value for (value,) in msgspec.structs.astuple(body.inputs)]
        if values == self._nothing:  # without a column nobody knows how many samples there are
            return None
        asked = asked_of(body, self._outputs)
        return Sample(place, values, asked, PlainForm.PREDICTIONS, single_column_path, "columns")

    def _of_rows(self, place: int, raw: bytes | bytearray) -> Sample | None:
        if self._rows is None:
            return None
        body = self._rows(raw)
        values = msgspec.structs.astuple(body.instances[0])
        asked = asked_of(body, self._outputs)
        return Sample(place, values, asked, PlainForm.PREDICTIONS, single_row_path, "rows")

    def _join(self, samples: Sequence[Sample]) -> Iterator[Gathered]:
        """Batches of all that are right."""
        try:
            batch = self._values.encode([sample.values for sample in samples])
        except FALL_BACKS:
            if len(samples) > 1:
                half = len(samples) // 2
                yield from self._join(samples[:half])
                yield from self._join(samples[half:])
        else:
            yield Gathered(samples, batch, self._declaration)


class ReadCounts:
    """Requests in JSON since the worker started, by the reader that took them.

    Fields:
        taken: fast reader → requests that it read: "gathered" (one sample each), "columns", "rows" or "ranking".
        left: fast reader → requests of its shape that it left to the next reader, for all that they hold.
        failed: fast reader → requests that it left by a fault of its own.
        reference: requests that the reference read or refused.
    """

    __slots__ = ("failed", "left", "reference", "taken")

    def __init__(self) -> None:
        self.taken, self.left, self.failed = (dict.fromkeys(READERS, 0) for _ in range(3))
        self.reference = 0

    @property
    def fast(self) -> int:
        """Requests that fast readers read."""
        return sum(self.taken.values())

    @property
    def failures(self) -> int:
        """Readings that a fault of a fast reader ended."""
        return sum(self.failed.values())


class FastReaders:
    """Every fast reader of a model. A fault of one costs no request its answer; it is counted, and logged once a kind.

    For one thread at a time.
    """

    def __init__(self, reader: RequestReader) -> None:
        self.counts = ReadCounts()
        self._gathering = GatheringReader(reader)
        self._columns = ColumnsReader(reader)
        self._rows = RowsReader(reader)
        self._ranking = RankingReader(reader)
        self._logged: set[tuple[str, type[Exception]]] = set()

    @property
    def max_gathered_bytes(self) -> int:
        """Bytes of the largest body that `gather` may take."""
        return self._gathering.max_bytes

    def gather(self, bodies: Sequence[tuple[int, bytes | bytearray]]) -> list[Gathered]:
        """The requests among ``bodies``, pairs of place and JSON, that hold one sample and nothing wrong."""
        try:
            found = self._gathering.read(bodies)
        except Exception as error:
            self._fail("gathered", error, len(bodies))
            return []
        taken = sum([len(gathered.samples) for gathered in found])
        self.counts.taken["gathered"] += taken
        self.counts.left["gathered"] += len(bodies) - taken
        return found

    def read(self, raw: bytes) -> DecodedRequest | None:
        """The request in ``raw``, or None if only the reference reader can tell."""
        reader: ColumnsReader | RowsReader | RankingReader
        if raw.find(_INPUTS, 0, _WITHIN) >= 0:
            name, reader = "columns", self._columns
        elif raw.find(_INSTANCES, 0, _WITHIN) >= 0:
            name, reader = "rows", self._rows
        elif raw.find(_CONTEXT, 0, _WITHIN) >= 0 or raw.find(_CANDIDATES, 0, _WITHIN) >= 0:
            name, reader = "ranking", self._ranking
        else:
            return None
        try:
            found = reader.read(raw)
        except Exception as error:
            self._fail(name, error, 1)
            return None
        counts = self.counts.left if found is None else self.counts.taken
        counts[name] += 1
        return found

    def _fail(self, name: str, error: Exception, requests: int) -> None:
        self.counts.failed[name] += requests
        kind = name, type(error)
        if kind not in self._logged:
            self._logged.add(kind)
            logger.exception(
                "The fast reader %r failed, through a fault of ours; the reference reads such requests, which is "
                "slower. Further faults of this kind are counted and not logged",
                name,
            )

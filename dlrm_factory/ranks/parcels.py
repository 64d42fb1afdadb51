"""A rank's part of a batch: rows of which it looks up its share, as the leader has it and as the bytes of a message.

::

    shape       see `Shape`
    rows        int32 [ranks], rows of each rank's slice
    steps       int32, K below, if there are sequences
    values      int32 [N + M]: N ids to look up for all rows, stream after stream; M of replicated features, for the
                rank's own rows
    weights     float32 [N + M], if the model is weighted
    dense       float32 [own rows, number of dense features], if the rows are samples
    spans       int32 [contexts, 2], the own samples that each of the rank's own contexts belongs to
    lengths     uint8, int16 or int32, the narrowest that holds them all:
                [W, rows] of streams of whole tables, [W', rows] of others, [F, own rows] of replicated features,
                [F', own rows] of other features that pool by the mean or not at all; but for W' nothing if every bag
                holds one id
    features    uint8, a bit for each feature that the part is of; nothing if it is of all
    holders     uint8, or uint16 where there are more than 256 ranks, [K]: of each id that the own rows have in a
                sequence whose table is cut by rows, the part of the table that has its row; feature after feature

Ids are below 2**31, as rows of their table or of the part of it that the rank holds. Samples whose contexts have ids of
some features have none of these themselves, so the samples are one part, and the contexts another, of other features.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

__all__ = [
    "ONE_EACH",
    "SAMPLES",
    "SEQUENCES",
    "WEIGHTED",
    "Bags",
    "OnHost",
    "Parcel",
    "Part",
    "Shape",
    "holder_dtype",
]

Bytes = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.integer[Any]]
Float32 = npt.NDArray[np.float32]

_WIDTHS: dict[int, tuple[Any, torch.dtype]] = {
    1: (np.uint8, torch.uint8),
    2: (np.int16, torch.int16),
    4: (np.int32, torch.int32),
}


class Shape(NamedTuple):
    """Start of a part: the sizes of what follows, in 32 bytes.

    Fields:
        values, own_values: N and M.
        own_rows: of the rank's own slice.
        numbers: dense features of a sample.
        contexts: of the own samples.
        whole, parts: streams of whole tables, and others.
        replicated, apart: features whose lengths follow.
        ranks: number of ranks.
        features: bytes.
        width: of a length, in bytes.
        flags: `ONE_EACH`, `WEIGHTED`, `SAMPLES` where the rows are samples, not contexts, and `SEQUENCES`.
    """

    values: int
    own_values: int
    own_rows: int
    numbers: int
    contexts: int
    whole: int
    parts: int
    replicated: int
    apart: int
    ranks: int
    features: int
    width: int
    flags: int


ONE_EACH, WEIGHTED, SAMPLES, SEQUENCES = 1, 2, 4, 8
_SHAPE = struct.Struct("<4I7H2B")
_SHAPE_BYTES = _SHAPE.size


@dataclass(frozen=True, kw_only=True)
class Parcel:
    """A rank's part, as the leader has it: in pieces, which `write` puts one after the other.

    Fields:
        numbers: with the dtype that they are written in.
        last: features and holders.
        crossing: numbers of sequences' vectors that other ranks send this one.
    """

    shape: Shape
    numbers: list[tuple[npt.NDArray[Any], type[np.int32] | type[np.float32]]]
    lengths: list[Ints]
    last: bytes
    crossing: int = 0

    @cached_property
    def size(self) -> int:
        """Bytes that `write` takes."""
        lengths = self.shape.width * sum(part.size for part in self.lengths)
        needed = 4 * sum(part.size for part, _ in self.numbers) + lengths + len(self.last)
        return _SHAPE_BYTES + _filled(needed)

    def write(self, target: Bytes) -> None:
        """Into the first `size` bytes of ``target``, which starts at a multiple of 4."""
        narrow = _WIDTHS[self.shape.width][0]
        _SHAPE.pack_into(target.data, 0, *self.shape)
        start = _SHAPE_BYTES
        for part, dtype in (*self.numbers, *((part, narrow) for part in self.lengths)):
            if not part.size:
                continue
            stop = start + np.dtype(dtype).itemsize * part.size
            target[start:stop].view(dtype).reshape(part.shape)[:] = part
            start = stop
        if self.last:
            target[start : start + len(self.last)] = np.frombuffer(self.last, dtype=np.uint8)


class Bags(NamedTuple):
    """Bags of S features, one after the other.

    Fields:
        values: int32 [n].
        offsets: int32 [S * rows + 1].
        weights: float32 [n] or None.
        lengths: [S, rows] of a small integer type; None if every bag holds one id.
    """

    values: torch.Tensor
    offsets: torch.Tensor
    weights: torch.Tensor | None
    lengths: torch.Tensor | None


class OnHost(NamedTuple):
    """Sizes of sequences, which a message's length follows from, on the host.

    Fields:
        sharded, replicated, apart: lengths [features, rows] as of the part's bags; None if every bag holds one id.
        holders: `holder_dtype` [K].
    """

    sharded: Ints | None
    replicated: Ints | None
    apart: Ints | None
    holders: Ints


@dataclass(frozen=True, kw_only=True)
class Part:
    """A rank's part of a batch, on the rank's device; it lies in the bytes it was read from.

    Fields:
        rows: of each rank's slice.
        dense: float32 [own samples, number of dense features].
        spans: (start, stop) of the own samples that each own context belongs to.
        sharded: bags that the rank looks up for all rows, by streams.
        replicated: bags that it looks up for its own rows.
        lengths_apart: [F', own rows], of features that are divided by it, or sequences; None if every bag holds one id.
        features: a bit for each feature that the part is of; empty if it is of all.
        on_host: None without sequences.
    """

    rows: list[int]
    dense: torch.Tensor
    spans: list[list[int]]
    sharded: Bags
    replicated: Bags
    lengths_apart: torch.Tensor | None
    features: bytes
    on_host: OnHost | None

    @classmethod
    def read_all(cls, source: torch.Tensor, count: int, *, device: torch.device) -> list[Part]:
        """``count`` parts, one after the other: ``source`` is uint8 on CPU, pinned if ``device`` is CUDA."""
        reads = _Reads(source, device)
        return [cls._read(reads, device) for _ in range(count)]

    @classmethod
    def _read(cls, reads: _Reads, device: torch.device) -> Part:
        shape = Shape(*_SHAPE.unpack(reads.on_host(_SHAPE_BYTES).data))
        rows_of_ranks: list[int] = reads.on_host(4 * shape.ranks).view(np.int32).tolist()
        rows = sum(rows_of_ranks)
        sequences, weighted = bool(shape.flags & SEQUENCES), bool(shape.flags & WEIGHTED)
        steps = int(reads.on_host(4).view(np.int32)[0]) if sequences else 0
        samples = shape.own_rows if shape.flags & SAMPLES else 0
        ids, own_ids = reads.ints(shape.values), reads.ints(shape.own_values)
        weights = [reads.floats(count) if weighted else None for count in (shape.values, shape.own_values)]
        dense = reads.floats(samples * shape.numbers).view(samples, shape.numbers)
        spans = (
            reads.on_host(8 * shape.contexts).view(np.int32).reshape(-1, 2).tolist() if shape.contexts else []
        )
        ahead = reads.ahead() if sequences else None
        lengths, own, apart = reads.all_lengths(shape, rows)
        features = reads.on_host(shape.features).tobytes()
        on_host = None
        if ahead is not None:
            holders = reads.on_host(steps * holder_dtype(shape.ranks).itemsize).view(
                holder_dtype(shape.ranks)
            )
            sharded, replicated, others = (
                None if each is None else each.numpy() for each in ahead.all_lengths(shape, rows)
            )
            on_host = OnHost(sharded, replicated, others, holders)
        reads.fill()
        return cls(
            rows=rows_of_ranks,
            dense=dense,
            spans=spans,
            sharded=Bags(ids, _offsets(lengths, shape.values, device), weights[0], lengths),
            replicated=Bags(own_ids, _offsets(own, shape.own_values, device), weights[1], own),
            lengths_apart=apart,
            features=features,
            on_host=on_host,
        )


class _Reads:
    """Pieces of a message, one after the other. NumPy cuts what is on the host: torch takes ten times as long."""

    def __init__(self, source: torch.Tensor, device: torch.device) -> None:
        self._device = device
        self._host = source.numpy()
        self._there = None if device.type == "cpu" else source.to(device, non_blocking=True)
        self._at = 0

    def on_host(self, size: int) -> Bytes:
        """The next ``size`` bytes."""
        start = self._at
        self._at = start + size
        return self._host[start : self._at]

    def ints(self, count: int) -> torch.Tensor:
        return self._next(count, 4, np.int32, torch.int32)

    def floats(self, count: int) -> torch.Tensor:
        return self._next(count, 4, np.float32, torch.float32)

    def all_lengths(self, shape: Shape, rows: int) -> tuple[torch.Tensor | None, ...]:
        """Those of streams [S, rows], of replicated features and of those apart [F, own rows]; None for ones alone."""
        width, own_rows = shape.width, shape.own_rows
        if shape.flags & ONE_EACH:
            if not shape.parts:
                return None, None, None
            parts = self._lengths(shape.parts, rows, width)
            whole = torch.ones(shape.whole, rows, dtype=parts.dtype, device=self._device)
            return torch.cat([whole, parts]), None, None
        # Those of whole tables and of parts lie side by side.
        streams = self._lengths(shape.whole + shape.parts, rows, width)
        own = self._lengths(shape.replicated, own_rows, width)
        return streams, own, self._lengths(shape.apart, own_rows, width)

    def _lengths(self, bags: int, each: int, width: int) -> torch.Tensor:
        return self._next(bags * each, width, *_WIDTHS[width]).view(bags, each)

    def ahead(self) -> _Reads:
        """The same from here on, as it is on the host."""
        return _Reads(torch.from_numpy(self._host[self._at :]), torch.device("cpu"))

    def fill(self) -> None:
        """Go on to the next multiple of 4."""
        self._at = _filled(self._at)

    def _next(self, count: int, width: int, here: Any, there: torch.dtype) -> torch.Tensor:
        if self._there is None:
            return torch.from_numpy(self.on_host(count * width).view(here))
        start = self._at
        self._at = start + count * width
        return self._there[start : self._at].view(there)


def _filled(size: int) -> int:
    return size + -size % 4


_counted: dict[torch.device, torch.Tensor] = {}


def _offsets(lengths: torch.Tensor | None, bags: int, device: torch.device) -> torch.Tensor:
    """int32 [bags + 1]; ``bags`` of one id each without ``lengths``."""
    if lengths is not None:
        offsets = torch.zeros(lengths.numel() + 1, dtype=torch.int32, device=device)
        torch.cumsum(lengths.view(-1), 0, dtype=torch.int32, out=offsets[1:])
        return offsets
    counted = _counted.get(device)
    if counted is None or counted.numel() <= bags:
        counted = _counted[device] = torch.arange(2 * bags + 1, dtype=torch.int32, device=device)
    return counted[: bags + 1]


def holder_dtype(parts: int) -> np.dtype[Any]:
    """Dtype of the place of one of ``parts`` parts of a table; a rank has one at most."""
    return np.dtype(np.uint8 if parts <= 256 else np.uint16)


def width_of(longest: int) -> int:
    """Bytes of the narrowest length that holds ``longest``."""
    return 1 if longest < 2**8 else 2 if longest < 2**15 else 4

"""KServe v2 tensors → columns, or a batch where all hold numbers in binary."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import numpy as np

from dlrm_factory.batch.feature_batch import FeatureBatch
from dlrm_factory.errors import RequestError, near_matches
from dlrm_factory.features import FeatureError, shown
from dlrm_factory.requests.formats.kserve.binary import Numbers
from dlrm_factory.requests.formats.kserve.wire import (
    DENSE_TYPES,
    ID_TYPES,
    INTEGER_TYPES,
    SentTensor,
    read_tensor,
    shown_shape,
)
from dlrm_factory.requests.formats.mistakes import Mistakes, element, member
from dlrm_factory.requests.formats.shape import RequestReader, check_samples

__all__ = ["Tensor", "encode_numbers", "read_tensors"]

_LARGEST_ID = np.uint64(2**63 - 1)
_PATH = "$.inputs"
_LENGTHS = ".lengths"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """One feature's values.

    Fields:
        name: the feature.
        path: of the tensor in the body.
        data: the values of all samples, flat.
        counts: how many of them each sample's bag holds; None if there is one value a sample.
        nested: how many data are in each innermost list the client sent; 0 for flat data.
    """

    name: str
    path: str
    data: list[Any] | Numbers
    counts: Sequence[int] | None
    nested: int

    @property
    def shape_path(self) -> str:
        return member(self.path, "shape")

    @property
    def size(self) -> int:
        """Samples."""
        return len(self.data if self.counts is None else self.counts)

    def column(self) -> Sequence[Any]:
        """One raw value a sample; a bag is a list."""
        data = self.data if isinstance(self.data, list) else self.data.tolist()
        if self.counts is None:
            return data
        return [data[start:stop] for start, stop in pairwise(_starts(self.counts))]

    def path_of(self, error: FeatureError) -> str:
        """The path of a wrong value; of all data for a bag that is wrong as a whole."""
        data = member(self.path, "data")
        if self.counts is None:
            return element(data, error.sample, 0 if self.nested else None)
        if error.position is None:
            return data
        index = sum(self.counts[: error.sample]) + error.position
        return element(data, *divmod(index, self.nested)) if self.nested else element(data, index)


def _starts(counts: Sequence[int]) -> list[int]:
    return [0, *accumulate(counts)]


def encode_numbers(tensors: Mapping[str, Tensor], size: int, reader: RequestReader) -> FeatureBatch | None:
    """The batch of ``size`` samples; None where a tensor holds no array, or something is wrong."""
    if any(isinstance(tensor.data, list) for tensor in tensors.values()):
        return None
    declaration = reader.encoder.declaration
    dense = np.empty((len(declaration.dense_features), size), dtype=np.float64)
    for i, feature in enumerate(declaration.dense_features):
        tensor = tensors.get(feature.name)
        dense[i] = feature.default if tensor is None else tensor.data
    lengths = np.zeros((len(declaration.sparse_features), size), dtype=np.int32)
    parts = [np.empty(0, dtype=np.int64)]
    for i, name in enumerate(declaration.sparse_names):
        tensor = tensors.get(name)
        if tensor is None:
            continue
        ids = np.asarray(tensor.data)
        if ids.dtype == np.uint64 and len(ids) and ids.max() > _LARGEST_ID:
            return None
        lengths[i] = 1 if tensor.counts is None else tensor.counts
        parts.append(ids.astype(np.int64, copy=False))
    try:
        return reader.encoder.encode_arrays(dense, lengths, np.concatenate(parts))
    except FeatureError:
        return None


def read_tensors(sent: list[Any], reader: RequestReader) -> dict[str, Tensor]:
    """Tensors by feature. RequestError with the path of what is wrong."""
    raws: dict[str, SentTensor] = {}
    for i, item in enumerate(sent):
        raw = read_tensor(item, element(_PATH, i))
        if raw.name in raws:
            raise RequestError(f"tensor {shown(raw.name)} is there twice; send it once", raw.path)
        raws[raw.name] = raw
    mistakes = Mistakes()
    mistakes.add_all(_unknown(raws, reader))
    mistakes.check()
    tensors = {name: _tensor(raw, raws, reader) for name, raw in raws.items() if name in reader.encoder.known}
    if not tensors:
        raise RequestError(
            "there are no tensors of features, so the number of samples is unknown; send one", _PATH
        )
    return tensors


def _unknown(raws: Mapping[str, SentTensor], reader: RequestReader) -> Iterator[RequestError]:
    sparse = set(reader.encoder.declaration.sparse_names)
    known = [*reader.encoder.names, *(name + _LENGTHS for name in sorted(sparse))]
    for name, raw in raws.items():
        path = member(raw.path, "name")
        if name not in reader.encoder.known and name.removesuffix(_LENGTHS) not in sparse:
            yield RequestError(
                f"{shown(name)} is not a feature of this model"
                f"{near_matches(name[:100], known) or '; remove it, or declare it'}",
                path,
            )
        elif name not in reader.encoder.known and name.removesuffix(_LENGTHS) not in raws:
            yield RequestError(
                f"{shown(name)} has no tensor {shown(name.removesuffix(_LENGTHS))}; send both", path
            )


def _tensor(raw: SentTensor, raws: Mapping[str, SentTensor], reader: RequestReader) -> Tensor:
    """The feature's column. RequestError if a feature of its kind takes no such tensor."""
    is_sparse = raw.name in reader.encoder.declaration.sparse_names
    allowed = ID_TYPES if is_sparse else DENSE_TYPES
    if raw.datatype not in allowed:
        raise RequestError(
            f"{'sparse' if is_sparse else 'dense'} feature {shown(raw.name)}: datatype {raw.datatype}; "
            f"send one of {', '.join(allowed)}",
            member(raw.path, "datatype"),
        )
    lengths = raws.get(raw.name + _LENGTHS) if is_sparse else None
    if lengths is not None:
        counts = _counts(lengths, raw)
    elif len(raw.shape) == 2 and is_sparse:
        check_samples(raw.shape[0], reader, member(raw.path, "shape"))
        counts = [raw.shape[1]] * raw.shape[0]
    elif len(raw.shape) == 2 and raw.shape[1] != 1:
        raise RequestError(
            f"dense feature {shown(raw.name)}: shape {shown_shape(raw.shape)}; send one number a sample",
            member(raw.path, "shape"),
        )
    else:
        return Tensor(name=raw.name, path=raw.path, data=raw.data, counts=None, nested=raw.nested)
    return Tensor(name=raw.name, path=raw.path, data=raw.data, counts=counts, nested=raw.nested)


def _counts(lengths: SentTensor, raw: SentTensor) -> list[int]:
    """Ids in each bag, from the companion tensor."""
    path = member(lengths.path, "data")
    if lengths.datatype not in INTEGER_TYPES or len(lengths.shape) != 1 or len(raw.shape) != 1:
        raise RequestError(
            f"{shown(lengths.name)} and {shown(raw.name)} must both be flat, the lengths integers; send shape "
            "[samples] and [ids of all samples]",
            member(lengths.path, "shape"),
        )
    counts = lengths.data if isinstance(lengths.data, list) else lengths.data.tolist()
    for i, count in enumerate(counts):
        if type(count) is not int or count < 0:
            raise RequestError(
                f"{shown(count)} is not the length of a bag; send a whole number, 0 for an empty bag",
                element(path, i),
            )
    if sum(counts) != len(raw.data):
        raise RequestError(
            f"the lengths add up to {shown(sum(counts))}, but {shown(raw.name)} holds {len(raw.data)} "
            "ids; they must agree",
            path,
        )
    return counts

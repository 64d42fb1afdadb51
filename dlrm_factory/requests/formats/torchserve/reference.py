"""The shape of TorchServe's DLRM example: one sample, its values in declared order.

::

    {"float_features": [0.5, 3.0],
     "id_list_features.lengths": [1, 1, 2],
     "id_list_features.values": [7, 12, 3, 9]}
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from dlrm_factory.errors import RequestError
from dlrm_factory.features import FeatureError, shown
from dlrm_factory.requests.formats.mistakes import Mistakes, element, member
from dlrm_factory.requests.formats.outputs import Asked
from dlrm_factory.requests.formats.shape import (
    DecodedRequest,
    PlainForm,
    RequestReader,
    Shape,
    encode_or_explain,
)

__all__ = ["FLOATS", "LENGTHS", "UPSTREAM", "VALUES", "upstream_path"]

FLOATS, LENGTHS, VALUES = "float_features", "id_list_features.lengths", "id_list_features.values"

_MAX_IDS = 2**31 - 1  # lengths are int32


def _decode(body: Mapping[str, Any], asked: Asked, reader: RequestReader) -> DecodedRequest:
    declaration = reader.encoder.declaration
    floats, lengths, values = (_list_of(body, key) for key in (FLOATS, LENGTHS, VALUES))
    mistakes = Mistakes()
    mistakes.add_all(_wrong_count(FLOATS, floats, declaration.dense_names, "dense"))
    mistakes.add_all(_wrong_count(LENGTHS, lengths, declaration.sparse_names, "sparse"))
    mistakes.check()
    counts = _counts(lengths, values)

    def path_of(error: FeatureError) -> str:
        return upstream_path(error, declaration.dense_names, declaration.sparse_names, counts)

    dense = {name: [value] for name, value in zip(declaration.dense_names, floats, strict=True)}
    jagged = (dense, counts.reshape(-1, 1), values)
    batch = encode_or_explain(
        lambda: reader.encoder.encode_jagged(*jagged),
        lambda: reader.encoder.mistakes_jagged(*jagged),
        path_of,
    )
    return DecodedRequest(batch=batch, asked=asked, form=PlainForm.SCORE, path_of=path_of, shape="torchserve")


def _list_of(body: Mapping[str, Any], key: str) -> list[Any]:
    if key not in body:
        raise RequestError(f"{key} is missing; this shape needs {FLOATS}, {LENGTHS} and {VALUES}")
    value = body[key]
    if not isinstance(value, list):
        raise RequestError(f"{shown(value)} is not a list; send the values of one sample", member("$", key))
    return value


def _wrong_count(key: str, values: list[Any], names: Sequence[str], kind: str) -> Iterator[RequestError]:
    if len(values) != len(names):
        yield RequestError(
            f"{len(values)} values, but the model has {len(names)} {kind} features; send one for each, in "
            f"declared order from {names[0]} to {names[-1]} (for several samples use instances or inputs)",
            member("$", key),
        )


def _counts(lengths: list[Any], values: list[Any]) -> npt.NDArray[np.int32]:
    """Int32 [F]: ids in each feature's bag."""
    path = member("$", LENGTHS)
    mistakes = Mistakes()
    mistakes.add_all(
        RequestError(
            f"{shown(length)} is not the length of a bag; send a whole number, 0 for an empty bag",
            element(path, i),
        )
        for i, length in enumerate(lengths)
        if type(length) is not int or not 0 <= length <= _MAX_IDS
    )
    mistakes.check()
    if sum(lengths) != len(values):
        raise RequestError(
            f"the lengths add up to {sum(lengths)}, but {VALUES} holds {len(values)} ids; they must agree",
            path,
        )
    return np.array(lengths, dtype=np.int32)


def upstream_path(
    error: FeatureError, dense: Sequence[str], sparse: Sequence[str], counts: npt.NDArray[np.int32]
) -> str:
    """Path of the wrong value. ``counts``: int32 [F], ids in each bag."""
    if error.feature in dense:
        return element(member("$", FLOATS), dense.index(error.feature))
    feature = sparse.index(error.feature)
    if error.position is None:
        return element(member("$", LENGTHS), feature)
    return element(member("$", VALUES), int(counts[:feature].sum()) + error.position)


UPSTREAM = Shape(name="upstream", keys=(FLOATS, LENGTHS, VALUES), decode=_decode)

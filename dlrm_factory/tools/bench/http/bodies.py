"""Bodies of requests: random ones for a declaration, or those of a file."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args
from urllib.parse import quote, urlsplit

import numpy as np
import numpy.typing as npt

from dlrm_factory.config import DenseFeature, DLRMDeclaration, SparseFeature
from dlrm_factory.errors import DataError

__all__ = [
    "SHAPES",
    "Body",
    "BodyFormat",
    "Columns",
    "http_requests",
    "random_bodies",
    "random_columns",
    "read_bodies",
    "sample_counts",
]

Columns: TypeAlias = dict[str, list[Any]]

_MISSING = 0.02  # share of cells left empty
_ZIPF_SHIFT = 10.0
_MAX_BAG = 5
_BAGS_UP_TO = 100  # a higher max_length limits requests and says little of the data: one id then


def random_columns(declaration: DLRMDeclaration, size: int, rng: np.random.Generator) -> Columns:
    """``size`` samples by feature name: numbers, ids or lists of ids, null where a cell is empty.

    Ids are Zipf-like over the whole table: P(row k) ∝ 1 / (k + 10).
    """
    columns: Columns = {}
    for dense in declaration.dense_features:
        columns[dense.name] = _with_gaps(_numbers(dense, size, rng).tolist(), rng)
    for sparse in declaration.sparse_features:
        rows = declaration.table(sparse.table).num_embeddings
        columns[sparse.name] = _with_gaps(_bags(sparse, rows, size, rng), rng)
    return columns


def _with_gaps(values: list[Any], rng: np.random.Generator) -> list[Any]:
    for i in np.flatnonzero(rng.random(len(values)) < _MISSING):
        values[i] = None
    return values


def _numbers(feature: DenseFeature, size: int, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Float64 [size]. Counts around the default where a logarithm is taken, else numbers around it."""
    if feature.takes_log:
        return np.round(np.expm1(np.abs(np.log1p(max(feature.default, 0)) + rng.normal(0, 1, size))), 2)
    return np.round(feature.default + rng.normal(0, max(1.0, abs(feature.default) / 2), size), 3)


def _bags(feature: SparseFeature, rows: int, size: int, rng: np.random.Generator) -> list[Any]:
    longest = min(feature.max_length, _MAX_BAG) if feature.max_length <= _BAGS_UP_TO else 1
    if longest == 1 and not feature.weighted:
        return _ids(feature, rows, size, rng)
    lengths = rng.integers(1, longest, size, endpoint=True).tolist()
    return [_bag(feature, _ids(feature, rows, length, rng), rng) for length in lengths]


def _bag(feature: SparseFeature, ids: list[Any], rng: np.random.Generator) -> Any:
    if not feature.weighted:
        return ids
    return {"ids": ids, "weights": np.round(rng.random(len(ids)), 3).tolist()}


def _ids(feature: SparseFeature, rows: int, size: int, rng: np.random.Generator) -> list[Any]:
    """Rows, or text such as ``user_17`` where ids are hashed or looked up in a vocabulary."""
    spread = ((rows + _ZIPF_SHIFT) / _ZIPF_SHIFT) ** rng.random(size)
    numbers = np.minimum(_ZIPF_SHIFT * (spread - 1), rows - 1).astype(np.int64).tolist()
    if feature.ids == "index":
        return list(numbers)
    name = feature.name.removesuffix("_id")
    return [f"{name}_{number}" for number in numbers]


BodyFormat = Literal["columns", "rows", "torchserve"]

SHAPES = ("1", "128", "512", "mlperf")

# Enough that no cache on the way knows them all by heart, few enough to encode in a moment.
_MAX_BODIES, _MAX_SAMPLES = 512, 20_000

# MLPerf's DLRM queries rank 100 to 700 candidates, 270 on average; this beta distribution has that range and mean.
_MIN_CANDIDATES, _MAX_CANDIDATES, _MEAN = 100, 700, 270
_ALPHA = 1.2
_BETA = _ALPHA * (_MAX_CANDIDATES - _MEAN) / (_MEAN - _MIN_CANDIDATES)


@dataclass(frozen=True, kw_only=True)
class Body:
    """JSON, and the samples in it."""

    content: bytes
    samples: int


def sample_counts(shape: str, rng: np.random.Generator) -> list[int]:
    """Samples of each body for a shape: a number of samples, or ``mlperf``. DataError for another word."""
    if shape == "mlperf":
        drawn = _MIN_CANDIDATES + (_MAX_CANDIDATES - _MIN_CANDIDATES) * rng.beta(
            _ALPHA, _BETA, _MAX_SAMPLES // _MEAN
        )
        return [int(n) for n in np.rint(drawn)]
    if not shape.isdecimal() or not 1 <= int(shape) <= _MAX_SAMPLES:
        raise DataError(
            f'shape "{shape}": give a number of samples from 1 to {_MAX_SAMPLES}, or mlperf (100 to 700 a request)'
        )
    return [int(shape)] * min(_MAX_BODIES, max(4, _MAX_SAMPLES // int(shape)))


def random_bodies(
    declaration: DLRMDeclaration, shape: str, *, body_format: BodyFormat = "columns", seed: int = 0
) -> list[Body]:
    """Bodies for the declared model; see `sample_counts` and `random_columns`."""
    rng = np.random.default_rng(seed)
    bodies = []
    for samples in sample_counts(shape, rng):
        request = _FORMATS[body_format](declaration, random_columns(declaration, samples, rng))
        bodies.append(Body(content=json.dumps(request).encode(), samples=samples))
    return bodies


def read_bodies(path: Path) -> list[Body]:
    """One JSON request a line; a line's samples are counted by its shape. DataError for what is not JSON."""
    try:
        lines = [line for line in path.read_bytes().splitlines() if line.strip()]
    except OSError as error:
        raise DataError(f"requests file {path} cannot be read: {error.strerror}") from error
    if not lines:
        raise DataError(f"requests file {path} is empty; write one JSON request a line")
    bodies = []
    for number, line in enumerate(lines, start=1):
        try:
            bodies.append(Body(content=line, samples=_samples_of(json.loads(line))))
        except ValueError as error:
            raise DataError(f"{path}, line {number}: is not JSON: {error}") from error
    return bodies


def http_requests(
    bodies: Sequence[Body], *, url: str, model: str, authorization: str | None = None
) -> list[bytes]:
    """Whole HTTP/1.1 requests to ``/predictions/{model}``. ``authorization``: the header's value."""
    parts = urlsplit(url)
    head = f"POST {parts.path.rstrip('/')}/predictions/{quote(model, safe='')} HTTP/1.1\r\n"
    head += f"Host: {parts.netloc}\r\nContent-Type: application/json\r\n"
    if authorization:
        head += f"Authorization: {authorization}\r\n"
    return [
        f"{head}Content-Length: {len(body.content)}\r\n\r\n".encode("latin-1") + body.content
        for body in bodies
    ]


def _as_columns(declaration: DLRMDeclaration, columns: Columns) -> dict[str, Any]:
    return {"inputs": columns}


def _as_rows(declaration: DLRMDeclaration, columns: Columns) -> dict[str, Any]:
    rows = zip(*columns.values(), strict=True)
    # A client leaves out what it does not know.
    return {"instances": [{k: v for k, v in zip(columns, row, strict=True) if v is not None} for row in rows]}


def _as_torchserve(declaration: DLRMDeclaration, columns: Columns) -> dict[str, Any]:
    """The shape of TorchServe's own DLRM example: one sample, numbers only."""
    if len(next(iter(columns.values()))) != 1:
        raise DataError("the torchserve format holds one sample a request; choose shape 1, or another format")
    odd = [f.name for f in declaration.sparse_features if f.ids != "index" or f.weighted]
    if odd:
        raise DataError(
            f'the torchserve format holds rows alone, but "{odd[0]}" has other ids; choose another format'
        )
    dense = [columns[each.name][0] for each in declaration.dense_features]
    bags = [columns[each.name][0] for each in declaration.sparse_features]
    bags = [bag if isinstance(bag, list) else [] if bag is None else [bag] for bag in bags]
    return {
        "float_features": [0.0 if value is None else value for value in dense],
        "id_list_features.lengths": [len(bag) for bag in bags],
        "id_list_features.values": [each for bag in bags for each in bag],
    }


_FORMATS: dict[BodyFormat, Callable[[DLRMDeclaration, Columns], dict[str, Any]]] = {
    "columns": _as_columns,
    "rows": _as_rows,
    "torchserve": _as_torchserve,
}
assert set(_FORMATS) == set(get_args(BodyFormat))


def _samples_of(request: Any) -> int:
    """Number of samples that a request of one of the handler's shapes asks for; 1 for others."""
    if not isinstance(request, dict):
        return 1
    for name in ("instances", "candidates"):
        if isinstance(request.get(name), list):
            return len(request[name])
    for name in ("inputs", "candidates"):
        if isinstance(request.get(name), dict):
            return max((len(c) for c in request[name].values() if isinstance(c, list)), default=1)
    return 1

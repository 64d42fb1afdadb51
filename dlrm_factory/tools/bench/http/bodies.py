"""Request bodies of several sizes and formats, encoded before the clock starts."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args
from urllib.parse import quote, urlsplit

import numpy as np

from dlrm_factory.config import DLRMDeclaration
from dlrm_factory.errors import DataError
from dlrm_factory.tools.bench.http.values import Columns, random_columns

__all__ = ["SHAPES", "Body", "BodyFormat", "http_requests", "random_bodies", "read_bodies", "sample_counts"]

BodyFormat = Literal["columns", "rows", "torchserve"]

SHAPES = ("1", "128", "512", "mlperf")

# Enough that no cache on the way knows them all by heart, few enough to encode in a moment.
_MOST_BODIES, _MOST_SAMPLES = 512, 20_000

# MLPerf's DLRM queries rank 100 to 700 candidates, 270 on average; this beta distribution has that range and mean.
_LEAST, _MOST, _MEAN = 100, 700, 270
_ALPHA = 1.2
_BETA = _ALPHA * (_MOST - _MEAN) / (_MEAN - _LEAST)


@dataclass(frozen=True, kw_only=True)
class Body:
    """JSON, and the samples in it."""

    content: bytes
    samples: int


def sample_counts(shape: str, rng: np.random.Generator) -> list[int]:
    """Samples of each body for a shape: a number of samples, or ``mlperf``. DataError for another word."""
    if shape == "mlperf":
        drawn = _LEAST + (_MOST - _LEAST) * rng.beta(_ALPHA, _BETA, _MOST_SAMPLES // _MEAN)
        return [int(n) for n in np.rint(drawn)]
    if not shape.isdecimal() or not 1 <= int(shape) <= _MOST_SAMPLES:
        raise DataError(
            f'shape "{shape}": give a number of samples from 1 to {_MOST_SAMPLES}, or mlperf (100 to 700 a request)'
        )
    return [int(shape)] * min(_MOST_BODIES, max(4, _MOST_SAMPLES // int(shape)))


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
    """How many samples a request of one of the handler's shapes asks for; 1 for others."""
    if not isinstance(request, dict):
        return 1
    for name in ("instances", "candidates"):
        if isinstance(request.get(name), list):
            return len(request[name])
    for name in ("inputs", "candidates"):
        if isinstance(request.get(name), dict):
            return max((len(c) for c in request[name].values() if isinstance(c, list)), default=1)
    return 1

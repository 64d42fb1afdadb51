"""Request bytes → KeyedJaggedTensor and dense tensor, against json.loads of the same bytes alone."""

from __future__ import annotations

import gc
import io
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from dlrm_factory.batch import to_dense, to_keyed_jagged_tensors
from dlrm_factory.config import DLRMDeclaration
from dlrm_factory.features import FeatureEncoder
from dlrm_factory.requests.decoding import RequestDecoder
from dlrm_factory.requests.formats import RequestReader
from dlrm_factory.requests.request import Request

__all__ = ["DecodeTiming", "measure_decoding"]

_NULLS = 0.02  # of all values
_BAG_LENGTHS = range(6)
_CALLS = 20  # of one kind in a row: in turn, each would find the caches full of the other's objects


@dataclass(frozen=True, kw_only=True)
class DecodeTiming:
    """Median milliseconds of one kind of body.

    Fields:
        body: what it is.
        size: in bytes.
        loads: json.loads of these bytes alone; of the same columns in JSON, for a body that is not JSON.
        ours: these bytes → checked tensors.
        target: how many times faster ours should be; None if nothing is asked.
    """

    body: str
    size: int
    loads: float
    ours: float
    target: float | None

    @property
    def ratio(self) -> float:
        return self.loads / self.ours


@dataclass(frozen=True, kw_only=True)
class _Case:
    body: str
    raw: bytes
    as_json: bytes
    declaration: DLRMDeclaration
    target: float | None = None


def measure_decoding(
    declaration: DLRMDeclaration,
    *,
    samples: int = 512,
    seconds: float = 1.0,
    observe: Callable[[str], None] = lambda _: None,
) -> list[DecodeTiming]:
    """Time each kind of body for about ``seconds``, one thread, no model."""
    timings = []
    for case in _cases(declaration, samples):
        observe(case.body)
        timings.append(_measure(case, seconds))
    return timings


def _measure(case: _Case, seconds: float) -> DecodeTiming:
    reader = RequestReader(encoder=FeatureEncoder(case.declaration), max_samples=10**9)
    decoder = RequestDecoder(reader, 10**9)

    def decode() -> None:
        batch = decoder.decode(Request(case.raw)).batch
        to_keyed_jagged_tensors(batch, case.declaration)
        to_dense(batch)

    decode()
    # As a worker does when it has loaded.
    gc.collect()
    gc.freeze()
    loads, ours = _medians([lambda: json.loads(case.as_json), decode], seconds)
    return DecodeTiming(body=case.body, size=len(case.raw), loads=loads, ours=ours, target=case.target)


def _medians(runs: Sequence[Callable[[], object]], seconds: float) -> list[float]:
    """Median milliseconds of each; they take turns, some calls at a time, so that a busy moment hits all."""
    taken: list[list[float]] = [[] for _ in runs]
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(taken[0]) < _CALLS:
        for run, times in zip(runs, taken, strict=True):
            for _ in range(_CALLS):
                start = time.perf_counter()
                run()
                times.append(time.perf_counter() - start)
    return [1e3 * statistics.median(times) for times in taken]


def _cases(declaration: DLRMDeclaration, samples: int) -> list[_Case]:
    index, hashed = _with_ids(declaration, "index"), _with_ids(declaration, "hash")
    random = np.random.default_rng(1)
    columns = _columns(index, samples, random)
    gaps = {
        name: [None if random.random() < _NULLS else v for v in values] for name, values in columns.items()
    }
    names = declaration.sparse_names
    short = columns | {
        name: [float(str(np.float32(v))) for v in columns[name]] for name in declaration.dense_names
    }
    texts = columns | {name: [_as_text(value) for value in columns[name]] for name in names}
    bags = columns | {name: _bags(columns[name], random) for name in names}
    by_columns = [
        ("columns", columns, index, 4.0),
        ("columns, short numbers", short, index, 4.0),
        ("columns, 2% null", gaps, index, None),
        ("columns, 0-5 ids a bag", bags, index, None),
        ("columns, string ids", texts, hashed, None),
    ]
    by_rows = [
        ("rows", columns, index, 2.0),
        ("rows, 2% null", gaps, index, None),
        ("rows, string ids", texts, hashed, None),
    ]
    cases = [_json_case(body, {"inputs": c}, d, target) for body, c, d, target in by_columns]
    cases += [_json_case(body, {"instances": _rows(c)}, d, target) for body, c, d, target in by_rows]
    raw = _arrow(columns)
    return [*cases, _Case(body="Arrow stream", raw=raw, as_json=cases[0].raw, declaration=index)]


def _json_case(body: str, content: Any, declaration: DLRMDeclaration, target: float | None) -> _Case:
    raw = json.dumps(content).encode()
    return _Case(body=body, raw=raw, as_json=raw, declaration=declaration, target=target)


def _with_ids(declaration: DLRMDeclaration, ids: str) -> DLRMDeclaration:
    """The declaration with every feature's ids of one kind, and no transform that training would have to fit."""
    sparse = [
        msgspec.structs.replace(
            feature,
            ids=ids,
            out_of_vocabulary=None,
            weighted=False,
            max_length=max(feature.max_length, _BAG_LENGTHS.stop),
        )
        for feature in declaration.sparse_features
    ]
    dense = [msgspec.structs.replace(feature, transform="none") for feature in declaration.dense_features]
    return msgspec.structs.replace(declaration, sparse_features=sparse, dense_features=dense)


def _columns(declaration: DLRMDeclaration, samples: int, random: np.random.Generator) -> dict[str, list[Any]]:
    """Normal float32 numbers as Python writes them, with up to 18 digits, and Zipf-like rows, one a bag."""
    columns: dict[str, list[Any]] = {}
    for name in declaration.dense_names:
        columns[name] = random.standard_normal(samples, dtype=np.float32).tolist()
    for feature in declaration.sparse_features:
        rows = declaration.table(feature.table).num_embeddings
        ranks = (rows + 10.0) ** random.random(samples) * 10.0 ** (1 - random.random(samples)) - 10
        columns[feature.name] = np.clip(ranks, 0, rows - 1).astype(np.int64).tolist()
    return columns


def _as_text(row: int) -> str:
    """Eight hexadecimal digits, as the Criteo logs have."""
    return f"{row * 2654435761 % 2**32:08x}"


def _bags(ids: list[int], random: np.random.Generator) -> list[list[int]]:
    lengths = random.choice(_BAG_LENGTHS, len(ids))
    return [random.choice(ids, length).tolist() for length in lengths]


def _rows(columns: dict[str, list[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _arrow(columns: dict[str, list[Any]]) -> bytes:
    import pyarrow as pa

    batch = pa.record_batch(columns)
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue()

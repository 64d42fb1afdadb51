"""Some rows of the clicks as raw values: what the archive asks the model again, as a client would."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from dlrm_factory.config.declaration import DLRMDeclaration, SparseFeature
from dlrm_factory.errors import DataError
from dlrm_factory.tools.data.bad_rows import Place
from dlrm_factory.tools.data.bags import encode_bag_weights, raw_ids
from dlrm_factory.tools.data.encoding import encode_dense
from dlrm_factory.tools.data.files import Chunk, ClickFiles, FileFormat, weights_column
from dlrm_factory.tools.data.split import is_held_out
from dlrm_factory.tools.data.synthetic import generate

__all__ = ["golden_rows_json", "pick_golden_rows"]

_MAX_ROWS = 24
_GENERATED_ROWS = 1000


def golden_rows_json(
    declaration: DLRMDeclaration, paths: Sequence[Path], file_format: FileFormat = "auto"
) -> str:
    """`pick_golden_rows` of the files ``paths``, or without any of generated clicks: a JSON list."""
    if paths:
        chunks = ClickFiles(paths, file_format).chunks(_columns(declaration))
    else:
        made = generate(declaration, _GENERATED_ROWS, declaration.training.seed)
        chunks = (generated.chunk for generated in made)
    return msgspec.json.encode(pick_golden_rows(chunks, declaration)).decode()


def pick_golden_rows(chunks: Iterable[Chunk], declaration: DLRMDeclaration) -> list[dict[str, Any]]:
    """Up to 24 rows of the first of ``chunks``, spread over it: raw values by feature, as in requests.

    Rows that the hash split holds out go first. Rows with a mistake are passed over.
    """
    chunk = next(iter(chunks), None)
    if chunk is None:
        return []
    options = declaration.training
    numbers = np.arange(chunk.columns.num_rows, dtype=np.int64)
    held_out = np.flatnonzero(is_held_out(numbers, holdout=options.holdout, seed=options.seed))
    wanted = held_out if len(held_out) >= _MAX_ROWS else numbers
    rows = []
    for i in _spread(wanted.tolist()):
        try:
            rows.append(_row(chunk, i, declaration))
        except DataError:
            continue
    return rows


def _columns(declaration: DLRMDeclaration) -> list[str]:
    weights = [weights_column(feature.name) for feature in declaration.sparse_features if feature.weighted]
    return [*declaration.dense_names, *declaration.sparse_names, *weights]


def _spread(places: list[int]) -> list[int]:
    if len(places) <= _MAX_ROWS:
        return places
    return [places[i * len(places) // _MAX_ROWS] for i in range(_MAX_ROWS)]


def _row(chunk: Chunk, i: int, declaration: DLRMDeclaration) -> dict[str, Any]:
    """Row ``i`` of ``chunk``. DataError if a value is not of its feature."""
    columns = chunk.columns.slice(i, 1)
    row: dict[str, Any] = {}
    for feature in declaration.dense_features:
        number = encode_dense(columns[feature.name], feature, _place(chunk, i, feature.name))[0]
        row[feature.name] = float(str(number))
    for sparse in declaration.sparse_features:
        row[sparse.name] = _bag(
            columns, sparse, declaration.training.separator, _place(chunk, i, sparse.name)
        )
    return row


def _bag(columns: pa.RecordBatch, feature: SparseFeature, separator: str, place: Place) -> Any:
    found, lengths = raw_ids(columns[feature.name], feature, separator, place)
    ids: list[Any] = found.tolist() if isinstance(found, np.ndarray) else found.to_pylist()
    if feature.ids == "index":
        ids = [_index(each, place) for each in ids]
    if feature.weighted:
        weights = encode_bag_weights(columns[weights_column(feature.name)], lengths, separator, place)
        return {"ids": ids, "weights": [float(str(weight)) for weight in weights]}
    return ids[0] if len(ids) == 1 else ids


def _index(raw: int | str, place: Place) -> int:
    try:
        return int(raw)
    except ValueError:
        raise place.error(0, "the id is not a row number") from None


def _place(chunk: Chunk, i: int, column: str) -> Place:
    return Place(source=chunk.source, first_row=chunk.first_row + i, column=column)

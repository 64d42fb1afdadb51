"""Requests that reach every page of every table."""

from __future__ import annotations

import itertools
import json
from typing import Any

import numpy as np

from dlrm_factory.config import DLRMDeclaration
from dlrm_factory.errors import ConfigError
from dlrm_factory.model.dtypes import row_bytes
from dlrm_factory.tools.bench.http.bodies import Body, sample_counts

__all__ = ["touching_bodies"]

_PAGE = 4096


def touching_bodies(declaration: DLRMDeclaration) -> list[Body]:
    """Bodies that look up one row of each page of each table, with nothing else in them.

    They hold 100 to 700 samples: a worker that sees batches of one size alone needs less memory.
    """
    columns = {f.name: _rows_of_pages(declaration, f.table) for f in declaration.sparse_features}
    hidden = [feature.name for feature in declaration.sparse_features if feature.ids != "index"]
    if hidden:
        raise ConfigError(
            [
                f'"{hidden[0]}" does not take rows as ids, so its pages cannot be named; use an archive with ids: index'
            ]
        )
    samples = max(len(rows) for rows in columns.values())
    sizes = itertools.cycle(sample_counts("mlperf", np.random.default_rng(0)))
    bodies, start = [], 0
    while start < samples:
        bodies.append(_body(columns, start, next(sizes)))
        start += bodies[-1].samples
    return bodies


def _rows_of_pages(declaration: DLRMDeclaration, table: str) -> list[int]:
    found = declaration.table(table)
    step = max(1, _PAGE // row_bytes(found.dtype, found.embedding_dim))
    return [*range(0, found.num_embeddings, step), found.num_embeddings - 1]


def _body(columns: dict[str, list[int]], start: int, size: int) -> Body:
    # Small tables end early and begin again.
    inputs: dict[str, Any] = {
        name: np.take(rows, np.arange(start, start + size), mode="wrap").tolist()
        for name, rows in columns.items()
    }
    return Body(content=json.dumps({"inputs": inputs}).encode(), samples=size)

"""Outputs → an Arrow stream."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from dlrm_factory.requests.answers import Answer
from dlrm_factory.requests.formats.arrow.stream import MEDIA_TYPE, pyarrow

__all__ = ["answer_arrow"]


def answer_arrow(outputs: Mapping[str, npt.NDArray[np.float32]]) -> Answer:
    """200 with one record batch, a row a sample in the request's order: a column an output.

    Float32 for [B], and FixedSizeList of float32 for [B, size].
    """
    pa = pyarrow()
    batch = pa.record_batch({name: _column(numbers) for name, numbers in outputs.items()})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return Answer(status=200, body=sink.getvalue().to_pybytes(), content_type=MEDIA_TYPE)


def _column(numbers: npt.NDArray[np.float32]) -> Any:
    if numbers.ndim == 1:
        return numbers
    flat = pyarrow().array(np.ascontiguousarray(numbers).reshape(-1))
    return pyarrow().FixedSizeListArray.from_arrays(flat, numbers.shape[1])

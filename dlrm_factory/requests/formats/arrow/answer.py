"""Scores → an Arrow stream."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dlrm_factory.requests.answers import Answer
from dlrm_factory.requests.formats.arrow.stream import MEDIA_TYPE, pyarrow

__all__ = ["answer_arrow"]


def answer_arrow(scores: Sequence[float]) -> Answer:
    """200 with one record batch: the float32 column ``score``, one a sample in the request's order."""
    pa = pyarrow()
    batch = pa.record_batch({"score": np.array(scores, dtype=np.float32)})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return Answer(status=200, body=sink.getvalue().to_pybytes(), content_type=MEDIA_TYPE)

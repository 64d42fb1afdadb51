"""Contribution of each feature to a score: the score with it less the score without it.

A feature that is left out takes what a client's silence would give it: its default, or an empty bag. All the samples
that this needs are scored in one batch, beside those of other requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from dlrm_factory.batch import FeatureBatch, SharedContext, concatenate, select_bags, tile_context
from dlrm_factory.errors import LimitError, RequestError
from dlrm_factory.features import FeatureError, shown
from dlrm_factory.requests.formats import DecodedRequest, RequestReader
from dlrm_factory.requests.formats.outputs import OUTPUTS_PATH, Asked, Scores
from dlrm_factory.requests.formats.shape import AnswerForm, Encoding, Entry
from dlrm_factory.requests.numbers import shortest

__all__ = ["explain", "without_each_feature"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplanationForm(AnswerForm):
    """Score and contributions of each sample.

    Fields:
        explained: form of the scores alone.
        names: of the features, in the order in which `without_each_feature` leaves them out.
    """

    explained: AnswerForm
    names: Sequence[str]

    @property
    def also(self) -> tuple[str, ...]:
        """Outputs that the scores alone need."""
        return self.explained.also

    def content(self, scores: Scores, asked: Asked) -> dict[str, Any]:
        """``{"explanations": [{"score": 0.31, "contributions": {"price": 0.02, …}}, …]}``.

        A contribution is an object by output where the score is one.
        """
        copies = (None, *self.names)
        gains = {
            output: self._gains(column, len(copies))
            for output, column in self.explained.columns(scores, asked, copies).items()
        }
        (only, *others), size = gains, scores.samples // len(copies)
        explanations = []
        for sample, entry in self.entries(scores.first(size), asked):
            numbers: list[Any] = shortest(gains[only][:, sample])
            if others:
                each = zip(*(shortest(gains[output][:, sample]) for output in gains), strict=True)
                numbers = [dict(zip(gains, row, strict=True)) for row in each]
            explanations.append({**entry, "contributions": dict(zip(self.names, numbers, strict=True))})
        return {"explanations": explanations}

    def entries(self, scores: Scores, asked: Asked) -> list[Entry]:
        """Entries of the scores alone."""
        return self.explained.entries(scores, asked)

    def _gains(self, column: Sequence[float], copies: int) -> npt.NDArray[np.float32]:
        """Float32 [features, B]: what each adds to the score, from ``column`` of ``copies`` times B samples."""
        table = np.array(column, dtype=np.float64).reshape(copies, -1)
        return (table[0] - table[1:]).astype(np.float32)


def explain(request: DecodedRequest, reader: RequestReader) -> DecodedRequest:
    """``request`` to be answered with contributions.

    LimitError if it needs more than max_samples samples, RequestError if it asks for a vector.
    """
    for name in request.asked.names:
        if name in reader.outputs.sizes:
            raise RequestError(
                f"output {shown(name)} is a vector, which has no contributions; ask for probabilities",
                OUTPUTS_PATH,
            )
    size, names = len(request.batch), reader.encoder.names
    needed = size * (len(names) + 1)
    if needed > reader.max_samples:
        raise LimitError(
            f"explaining {size} samples of {len(names)} features scores {needed} samples, over max_samples "
            f"{reader.max_samples}; send at most {reader.max_samples // (len(names) + 1)} samples a request, "
            "or raise serving.max_samples in the declaration",
        )

    def path_of(error: FeatureError) -> str:
        sample = error.sample % size
        return request.path_of(
            FeatureError(error.message, feature=error.feature, sample=sample, position=error.position)
        )

    batch = without_each_feature(_with_context(request), reader.encoder.encode({}, 1))
    form = ExplanationForm(explained=request.form, names=names)
    return replace(
        request,
        batch=batch,
        context=None,
        form=form,
        path_of=path_of,
        encoding=Encoding.JSON,
        copies=len(names) + 1,
    )


def without_each_feature(batch: FeatureBatch, blank: FeatureBatch) -> FeatureBatch:
    """The B samples of ``batch`` as they are, then without the first feature, then without the second, ...

    In all (number of features + 1) * B samples; dense features come first. ``blank``: one sample with no feature.
    """
    size, dense_features = batch.dense.shape
    sparse_features = len(batch.lengths)
    copies = dense_features + sparse_features + 1
    dense = np.tile(batch.dense, (copies, 1))
    for i in range(dense_features):
        dense[_block(1 + i, size), i] = blank.dense[0, i]
    source = np.tile(np.arange(size), (sparse_features, copies))
    for i in range(sparse_features):
        source[i, _block(1 + dense_features + i, size)] = size
    return select_bags(concatenate([batch, blank]), source, dense=dense)


def _block(copy: int, size: int) -> slice:
    return slice(copy * size, (copy + 1) * size)


def _with_context(request: DecodedRequest) -> FeatureBatch:
    if request.context is None:
        return request.batch
    shared = SharedContext(bags=request.context, spans=[(0, len(request.batch))])
    return tile_context(request.batch, shared)

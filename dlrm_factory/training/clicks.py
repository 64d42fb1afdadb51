"""Where the samples come from: the user's files, or the ground truth."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dlrm_factory.config.declaration import DLRMDeclaration
from dlrm_factory.features.vocabulary_rows import VocabularyRows
from dlrm_factory.training.click_files import Chunk, read_chunks
from dlrm_factory.training.dataset import ClickDataset
from dlrm_factory.training.encoding import EncodedChunk, encode_chunk, limited
from dlrm_factory.training.fit import FittedFeatures, fit_features
from dlrm_factory.training.generate import default_rows, generate
from dlrm_factory.training.loop import Observer, Progress
from dlrm_factory.training.write_clicks import ClickWriter, click_writer

__all__ = ["Clicks", "generate_clicks", "read_clicks"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Clicks:
    """Samples, and what was found in them.

    Fields:
        features: the declaration and vocabularies they are encoded by.
        true_logits: the ground truth's, float64 [N]; None if the clicks are real.
    """

    dataset: ClickDataset
    features: FittedFeatures
    true_logits: npt.NDArray[np.float64] | None = None


def read_clicks(
    declaration: DLRMDeclaration, paths: Sequence[Path], *, rows: int | None, observe: Observer
) -> Clicks:
    """The samples of ``paths``, at most ``rows`` of them. DataError for the first mistake."""
    features = fit_features(declaration, read_chunks(paths, declaration), rows=rows, observe=observe)
    encode = _encoder(features)
    encoded = (encode(chunk) for chunk in read_chunks(paths, declaration))
    dataset = ClickDataset.of(_observed(limited(encoded, rows), observe, rows), declaration)
    return Clicks(dataset=dataset, features=features)


def generate_clicks(
    declaration: DLRMDeclaration, *, rows: int | None, write_to: Path | None, observe: Observer
) -> Clicks:
    """``rows`` samples of the ground truth (None: enough to learn it), also written to a file if asked."""
    rows = rows or default_rows(declaration)
    logits: list[npt.NDArray[np.float64]] = []
    raw = (generated.chunk for generated in generate(declaration, rows, declaration.training.seed))
    features = fit_features(declaration, raw, rows=rows, observe=observe)
    with ExitStack() as stack:
        writer = None
        if write_to is not None:
            writer = stack.enter_context(click_writer(write_to, declaration.training.separator))
        encoded = _generated(features, rows, logits, writer)
        dataset = ClickDataset.of(_observed(encoded, observe, rows), declaration)
    return Clicks(dataset=dataset, features=features, true_logits=np.concatenate(logits))


def _encoder(features: FittedFeatures) -> Callable[[Chunk], EncodedChunk]:
    vocabulary = None
    if features.vocabularies is not None:
        vocabulary = VocabularyRows(features.declaration, features.vocabularies)
    return partial(encode_chunk, declaration=features.declaration, vocabulary=vocabulary)


def _generated(
    features: FittedFeatures,
    rows: int,
    logits: list[npt.NDArray[np.float64]],
    writer: ClickWriter | None,
) -> Iterator[EncodedChunk]:
    encode = _encoder(features)
    for generated in generate(features.declaration, rows, features.declaration.training.seed):
        logits.append(generated.logits)
        if writer is not None:
            writer.write(generated.chunk.columns)
        yield encode(generated.chunk)


def _observed(chunks: Iterator[EncodedChunk], observe: Observer, rows: int | None) -> Iterator[EncodedChunk]:
    done = 0
    for chunk in chunks:
        yield chunk
        done += len(chunk.labels)
        observe(Progress(stage="data", done=done, total=rows))

"""Rows → golden requests with their scores, by the sealed weights and by the float ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import torch

from dlrm_factory.batch import FeatureBatch, concatenate, to_dense
from dlrm_factory.compiled import DirectLookup
from dlrm_factory.config import ShardingOptions
from dlrm_factory.config.declaration import DLRMDeclaration
from dlrm_factory.errors import DLRMError, WeightsError
from dlrm_factory.factory import DLRMFactory
from dlrm_factory.features import FeatureEncoder, Vocabularies
from dlrm_factory.goldens.file import Golden, Goldens, write_goldens
from dlrm_factory.goldens.generating import generated_rows
from dlrm_factory.scorer import Scorer, probabilities
from dlrm_factory.weights import RowSource, SealedWeights, reseal

__all__ = ["add_goldens", "golden_batch"]

Row = Mapping[str, Any]
Float32 = npt.NDArray[np.float32]


def add_goldens(folder: Path, *, real_rows: Sequence[Row] = (), trained: RowSource | None = None) -> Goldens:
    """Make golden requests for the sealed weights in ``folder``, and seal them in.

    Args:
        real_rows: raw values by feature, as in requests. Rows that a request could not hold are passed over.
        trained: the float rows of the tables; None if they are not at hand.

    WeightsError if a score is not a finite number.
    """
    sealed = SealedWeights(folder, again=True)
    goldens = _make(_scorer(sealed), real_rows, trained)
    write_goldens(goldens, folder)
    reseal(folder, sealed.seal)
    return goldens


def golden_batch(
    goldens: Goldens, declaration: DLRMDeclaration, vocabularies: Vocabularies | None
) -> FeatureBatch:
    """All golden samples in one batch. WeightsError if one is not of the declaration."""
    encoder = FeatureEncoder(declaration, vocabularies)
    try:
        return concatenate([_encode(encoder, golden.row) for golden in goldens.requests])
    except DLRMError as error:
        raise WeightsError(f"a golden request is not of the declaration: {error}") from None


def _scorer(sealed: SealedWeights) -> Scorer:
    """Eager and alone in this process, wherever the declaration would put the tables."""
    alone = msgspec.structs.replace(sealed.declaration, sharding=ShardingOptions())
    built = DLRMFactory(alone).build(weights=sealed, device="cpu")
    lookup = DirectLookup(alone, sealed.tables)
    return Scorer(built, lookup=lookup, vocabularies=sealed.vocabularies)


def _make(scorer: Scorer, real_rows: Sequence[Row], trained: RowSource | None) -> Goldens:
    encoder = FeatureEncoder(scorer.declaration, scorer.vocabularies)
    made = generated_rows(scorer.declaration, scorer.vocabularies)
    kept: list[tuple[bytes, bool]] = []
    batches: list[FeatureBatch] = []
    for row, real in [*((row, True) for row in real_rows), *((row, False) for row in made)]:
        body = msgspec.json.encode({"instances": [row]})
        if len(body) > scorer.declaration.serving.max_body_bytes:
            continue
        try:
            batches.append(_encode(encoder, row))
        except DLRMError:
            if not real:
                raise
            continue  # training drops what a request may not hold, e.g. an id that the vocabulary lacks
        kept.append((body, real))
    if not batches:
        raise WeightsError(
            f"serving.max_body_bytes {scorer.declaration.serving.max_body_bytes} is too small for any request; raise it"
        )
    batch = concatenate(batches)
    expected = probabilities(scorer.logits(batch))
    floats = None if trained is None else _trained_scores(scorer, batch, trained)
    if not np.isfinite(expected).all():
        raise WeightsError("the model's scores are not finite numbers; are its weights finite?")
    return Goldens(
        requests=[
            Golden(
                request=msgspec.Raw(body),
                expected=float(str(expected[i])),
                trained=None if floats is None or not np.isfinite(floats[i]) else float(str(floats[i])),
                real=real,
            )
            for i, (body, real) in enumerate(kept)
        ]
    )


def _encode(encoder: FeatureEncoder, row: Row) -> FeatureBatch:
    if unknown := row.keys() - encoder.known:
        raise WeightsError(f'"{min(unknown)}" is not a declared feature')
    return encoder.encode({name: [value] for name, value in row.items()}, 1)


def _trained_scores(scorer: Scorer, batch: FeatureBatch, trained: RowSource) -> Float32:
    """Probabilities of the float model, float32 [B]. Reads only the rows of the batch, whatever a table's size."""
    return probabilities(scorer.interact(to_dense(batch), _pool(scorer.declaration, batch, trained)))


def _pool(declaration: DLRMDeclaration, batch: FeatureBatch, rows: RowSource) -> torch.Tensor:
    """Float32 [B, F, D], features in declared order."""
    weights = np.ones(len(batch.values), dtype=np.float32) if batch.weights is None else batch.weights
    pooled = []
    at = 0
    for feature, lengths in zip(declaration.sparse_features, batch.lengths, strict=True):
        table = declaration.table(feature.table)
        stop = at + int(lengths.sum())
        distinct, places = np.unique(batch.values[at:stop], return_inverse=True)
        found = [rows.table_rows(table.name, row, row + 1) for row in distinct.tolist()]
        starts = np.cumsum(lengths) - lengths
        vectors = torch.nn.functional.embedding_bag(
            torch.from_numpy(places.reshape(-1).astype(np.int64)),
            torch.cat(found) if found else torch.zeros(1, table.embedding_dim),
            torch.from_numpy(starts.astype(np.int64)),
            mode="sum",
            per_sample_weights=torch.from_numpy(weights[at:stop]),
        )
        if table.pooling == "mean":
            vectors = vectors / torch.from_numpy(np.maximum(lengths, 1))[:, None]
        pooled.append(vectors)
        at = stop
    return torch.stack(pooled, dim=1)

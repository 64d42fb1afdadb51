"""Golden requests made: rows of the clicks and generated ones, scored by the sealed weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import torch

from dlrm_factory.batch import Embeddings, FeatureBatch, concatenate, to_dense
from dlrm_factory.compiled import DirectLookup
from dlrm_factory.config import ShardingOptions
from dlrm_factory.config.declaration import DenseFeature, DLRMDeclaration, SparseFeature
from dlrm_factory.errors import DLRMError, RequestError, WeightsError
from dlrm_factory.factory import DLRMFactory
from dlrm_factory.features import FeatureEncoder, Vocabularies
from dlrm_factory.features.ids import unmix_int64
from dlrm_factory.goldens.file import Golden, Goldens, write_goldens
from dlrm_factory.scorer import EAGER_TOLERANCE, Scorer, probabilities
from dlrm_factory.weights.few_pages import FewPages
from dlrm_factory.weights.rows import RowSource
from dlrm_factory.weights.sealed import SealedWeights, reseal

__all__ = [
    "add_goldens",
    "generated_rows",
    "golden_batch",
]

_RANDOM_ROWS = 13
_MAX_BAG = 4
_MISSING = 0.15  # of the values in random rows

Id = int | str

Row = Mapping[str, Any]
Float32 = npt.NDArray[np.float32]


def generated_rows(declaration: DLRMDeclaration, vocabularies: Vocabularies | None) -> list[dict[str, Any]]:
    """16 rows by name, raw values, the same for the same declaration and vocabularies.

    The first is empty, the second takes the last row of every table, the third the first; the others are random.
    """
    random = np.random.default_rng(20)
    ids = {f.name: _Ids(f, declaration, vocabularies) for f in declaration.sparse_features}
    last = {feature.name: _bag(feature, [ids[feature.name].last]) for feature in declaration.sparse_features}
    first = {
        feature.name: _bag(feature, [ids[feature.name].first]) for feature in declaration.sparse_features
    }
    rows: list[dict[str, Any]] = [{}, last, first]
    for _ in range(_RANDOM_ROWS):
        row: dict[str, Any] = {f.name: _number(f, random) for f in declaration.dense_features}
        for feature in declaration.sparse_features:
            size = int(random.integers(0, min(_MAX_BAG, feature.max_length) + 1))
            row[feature.name] = _bag(feature, [ids[feature.name].draw(random) for _ in range(size)], random)
        rows.append({name: value for name, value in row.items() if random.random() >= _MISSING})
    return [{name: value for name, value in row.items() if value is not None} for row in rows]


class _Ids:
    """Raw ids of one feature. None stands for an id of a table that has none."""

    def __init__(
        self, feature: SparseFeature, declaration: DLRMDeclaration, vocabularies: Vocabularies | None
    ) -> None:
        self._kind = feature.ids
        self._rows = declaration.table(feature.table).num_embeddings
        self._known: list[Id] = []
        self._unknown = feature.ids == "vocabulary" and feature.out_of_vocabulary != "error"
        if feature.ids == "vocabulary" and vocabularies is not None:
            entries = vocabularies.sizes[feature.table]
            spread = sorted({place * (entries - 1) // 15 for place in range(16)}) if entries else []
            self._known = vocabularies.ids_of(feature.table, spread)

    @property
    def first(self) -> Id | None:
        return self._at(0)

    @property
    def last(self) -> Id | None:
        return self._at(self._rows - 1)

    def draw(self, random: np.random.Generator) -> Id | None:
        if self._kind == "vocabulary":
            if self._unknown and random.random() < 0.2:
                return f"never seen {random.integers(1000)}"
            return self._known[random.integers(len(self._known))] if self._known else None
        row = int(random.integers(self._rows))
        return f"id_{row}" if self._kind == "hash" and random.random() < 0.5 else self._at(row)

    def _at(self, row: int) -> Id | None:
        """An id that leads to ``row``; for a vocabulary its first or its last."""
        if self._kind == "index":
            return row
        if self._kind == "hash":  # row = H(id) mod rows, and H is one to one on integers
            return int(unmix_int64(np.array([row], dtype=np.uint64))[0])
        if not self._known:
            return None
        return self._known[0 if row == 0 else -1]


def _bag(feature: SparseFeature, ids: list[Id | None], random: np.random.Generator | None = None) -> Any:
    found = [each for each in ids if each is not None]
    if feature.weighted and random is not None:
        return {"ids": found, "weights": [round(float(random.uniform(0, 2)), 2) for _ in found]}
    return found[0] if len(found) == 1 else found


def _number(feature: DenseFeature, random: np.random.Generator) -> float:
    """A raw number that the transform makes of the order of 1, so that scores are not all 0 or 1."""
    number = float(random.normal())
    if feature.is_standardized and feature.mean is not None and feature.std is not None:
        number = feature.mean + number * feature.std
    elif feature.transform == "none":
        number += feature.default
    if feature.takes_log:
        number = math.expm1(min(abs(number), 20.0))
    return float(f"{number:.4g}")


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
    few_pages = FewPages(alone, sealed.tables)
    built = DLRMFactory(alone).build(weights=sealed, device="cpu")
    lookup = DirectLookup(alone, sealed.tables)
    return Scorer(built, lookup=lookup, vocabularies=sealed.vocabularies, few_pages=few_pages)


def _make(scorer: Scorer, real_rows: Sequence[Row], trained: RowSource | None) -> Goldens:
    encoder = FeatureEncoder(scorer.declaration, scorer.vocabularies)
    made = generated_rows(scorer.declaration, scorer.vocabularies)
    kept: list[tuple[bytes, bool]] = []
    batches: list[FeatureBatch] = []
    for row, real in [*((row, True) for row in real_rows), *((row, False) for row in made)]:
        body = msgspec.json.encode({"instances": [row], **_asked(scorer.declaration)})
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
    if scorer.declaration.module is not None:
        batches, kept, alone = _accepted(scorer, batches, kept)
    batch = concatenate(batches)
    outputs = scorer.outputs(batch)
    expected = scorer.comparable(outputs)[:, scorer.first_column]
    if scorer.declaration.module is not None:
        _check_alone(scorer, alone, outputs)
    floats = None if trained is None else _trained_scores(scorer, batch, trained)
    if not np.isfinite(outputs).all():
        raise WeightsError("the model's scores are not finite numbers; are its weights finite?")
    return Goldens(
        requests=[
            Golden(
                request=msgspec.Raw(body),
                expected=float(str(expected[i])) if scorer.declaration.probabilities else None,
                trained=None if floats is None or not np.isfinite(floats[i]) else float(str(floats[i])),
                outputs=_values(scorer.declaration, outputs[i]),
                real=real,
            )
            for i, (body, real) in enumerate(kept)
        ]
    )


def _accepted(
    scorer: Scorer, batches: Sequence[FeatureBatch], kept: Sequence[tuple[bytes, bool]]
) -> tuple[list[FeatureBatch], list[tuple[bytes, bool]], Float32]:
    """Those of ``batches`` and ``kept`` that the module does not refuse, and their outputs alone, float32 [B, C].

    WeightsError if it refuses all.
    """
    accepted: list[tuple[FeatureBatch, tuple[bytes, bool], Float32]] = []
    refusal = None
    for batch, each in zip(batches, kept, strict=True):
        try:
            accepted.append((batch, each, scorer.outputs(batch)))
        except RequestError as error:
            refusal = error
    if not accepted:
        raise WeightsError(f"the module refuses every golden request, such as: {refusal}")
    outputs = np.concatenate([each for _, _, each in accepted])
    return [batch for batch, _, _ in accepted], [each for _, each, _ in accepted], outputs


def _check_alone(scorer: Scorer, alone: Float32, together: Float32) -> None:
    """WeightsError if samples' outputs ``alone`` are not those in a batch: then no score could be relied on."""
    difference = np.abs(scorer.comparable(alone) - scorer.comparable(together)).max(axis=1)
    worst = int(difference.argmax())
    if difference[worst] > EAGER_TOLERANCE:
        module = scorer.declaration.module
        assert module is not None
        raise WeightsError(
            f"{module.module}: golden sample {worst + 1} scores {difference[worst]:.2g} apart alone and in a batch of "
            f"{len(together)}; the module mixes samples, or reads sequences past their lengths: mask by lengths"
        )


def _asked(declaration: DLRMDeclaration) -> dict[str, Any]:
    """Request for every output, of a model that has several or a vector."""
    names = [output.name for output in declaration.all_outputs]
    return {"outputs": names} if len(names) > len(declaration.probabilities[:1]) else {}


def _values(declaration: DLRMDeclaration, outputs: Float32) -> dict[str, float | list[float]] | None:
    """Each output by name, of one sample's columns, float32 [C], if they are asked for."""
    if not _asked(declaration):
        return None
    found: dict[str, float | list[float]] = {}
    for output in declaration.all_outputs:
        part = outputs[declaration.columns_of(output.name)]
        if output.kind == "probability":
            found[output.name] = float(str(probabilities(part)[0]))
        else:
            found[output.name] = [float(str(number)) for number in part]
    return found


def _encode(encoder: FeatureEncoder, row: Row) -> FeatureBatch:
    if unknown := row.keys() - encoder.known:
        raise WeightsError(f'"{min(unknown)}" is not a declared feature')
    return encoder.encode({name: [value] for name, value in row.items()}, 1)


def _trained_scores(scorer: Scorer, batch: FeatureBatch, trained: RowSource) -> Float32:
    """First outputs of the float model, float32 [B]. Reads only the rows of the batch, whatever a table's size."""
    outputs = scorer.interact(to_dense(batch), _look_up(scorer.declaration, batch, trained))
    return scorer.comparable(outputs)[:, scorer.first_column]


def _look_up(declaration: DLRMDeclaration, batch: FeatureBatch, rows: RowSource) -> Embeddings:
    """Vectors of the float tables' rows."""
    weights = np.ones(len(batch.values), dtype=np.float32) if batch.weights is None else batch.weights
    pooled, sequences, counts = [torch.empty(len(batch), 0)], [], []
    longest = _longest(declaration, batch)
    at = 0
    for feature, lengths in zip(declaration.sparse_features, batch.lengths, strict=True):
        table = declaration.table(feature.table)
        stop = at + int(lengths.sum())
        distinct, places = np.unique(batch.values[at:stop], return_inverse=True)
        found = [rows.table_rows(table.name, row, row + 1) for row in distinct.tolist()]
        vectors_of = torch.cat(found) if found else torch.zeros(1, table.embedding_dim)
        if table.pooling == "none":
            padded = torch.zeros(len(batch), longest[feature.max_length], table.embedding_dim)
            filled = np.arange(padded.shape[1]) < lengths[:, None]
            padded[torch.from_numpy(filled)] = vectors_of[torch.from_numpy(places.reshape(-1))][: stop - at]
            sequences.append(padded)
            counts.append(torch.from_numpy(lengths.astype(np.int64)))
            at = stop
            continue
        starts = np.cumsum(lengths) - lengths
        vectors = torch.nn.functional.embedding_bag(
            torch.from_numpy(places.reshape(-1).astype(np.int64)),
            vectors_of,
            torch.from_numpy(starts.astype(np.int64)),
            mode="sum",
            per_sample_weights=torch.from_numpy(weights[at:stop]),
        )
        if table.pooling == "mean":
            vectors = vectors / torch.from_numpy(np.maximum(lengths, 1))[:, None]
        pooled.append(vectors)
        at = stop
    return Embeddings(torch.cat(pooled, dim=1), sequences, counts)


def _longest(declaration: DLRMDeclaration, batch: FeatureBatch) -> dict[int, int]:
    """T by the max_length of sequence features."""
    found: dict[int, int] = {}
    for feature in declaration.sequence_features:
        most = int(batch.lengths[declaration.sparse_names.index(feature.name)].max(initial=1))
        found[feature.max_length] = max(found.get(feature.max_length, 1), most)
    return found

"""What the training part says of the features: vocabularies of ids, mean and std of dense values."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import msgspec
import numpy as np
import numpy.typing as npt

from dlrm_factory.config.declaration import DLRMDeclaration
from dlrm_factory.features import Vocabularies, build_vocabularies, transform_dense
from dlrm_factory.tools.data.bags import raw_ids
from dlrm_factory.tools.data.encoding import encode_chunk, encode_dense
from dlrm_factory.tools.data.id_counts import IdCounts, Ordered
from dlrm_factory.tools.data.moments import Moments
from dlrm_factory.tools.data.places import Place
from dlrm_factory.tools.data.progress import Observer, Progress
from dlrm_factory.tools.data.sides import SidedChunk
from dlrm_factory.tools.data.unreadable_cells import FeatureCells

__all__ = ["FittedFeatures", "fit_features", "needs_fitting"]

logger = logging.getLogger(__name__)

Training = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class FittedFeatures:
    """The declaration with every mean and std, and the vocabularies of its tables; None if it has none."""

    declaration: DLRMDeclaration
    vocabularies: Vocabularies | None


def needs_fitting(declaration: DLRMDeclaration) -> bool:
    """Whether something of the declaration has to be found in the training part."""
    return bool(declaration.vocabulary_tables) or any(
        feature.is_standardized and feature.mean is None for feature in declaration.dense_features
    )


def fit_features(
    declaration: DLRMDeclaration, chunks: Iterable[SidedChunk], *, rows: int | None, observe: Observer
) -> FittedFeatures:
    """One pass over ``chunks``, of ``rows`` rows if that is known. Held-out rows are passed over, and bad ones.

    DataError for a value that is not of its feature.
    """
    if not needs_fitting(declaration):
        return FittedFeatures(declaration=declaration, vocabularies=None)
    moments = {f.name: Moments() for f in declaration.dense_features if f.is_standardized and f.mean is None}
    counts = {table: IdCounts() for table in declaration.vocabulary_tables}
    may_miss = any(feature.unreadable == "missing" for feature in declaration.features)
    done = 0
    for sided in chunks:
        training = ~sided.sides.held_out
        cells: Mapping[str, FeatureCells] = {}
        if sided.wrong is not None or may_miss:
            # A row that is bad in any column is left out whole, so all columns are looked at.
            cells = encode_chunk(sided.chunk, declaration, wrong=sided.wrong).unreadable.features
        if sided.wrong is not None:
            training &= ~sided.wrong.mask
        _add_numbers(moments, sided, declaration, training, cells)
        _add_ids(counts, sided, declaration, training, cells)
        done += len(training)
        observe(Progress(stage="features", done=done, total=rows))
    return FittedFeatures(
        declaration=_with_statistics(declaration, moments), vocabularies=_vocabularies(declaration, counts)
    )


def _add_numbers(
    moments: dict[str, Moments],
    sided: SidedChunk,
    declaration: DLRMDeclaration,
    training: Training,
    cells: Mapping[str, FeatureCells],
) -> None:
    for feature in declaration.dense_features:
        if feature.name in moments:
            column = sided.chunk.columns[feature.name]
            raw = encode_dense(column, feature, _place(sided, feature.name, cells))
            dense = transform_dense(raw[:, None], [feature], until_standardized=True)
            moments[feature.name].add(dense[training, 0])


def _add_ids(
    counts: dict[str, IdCounts],
    sided: SidedChunk,
    declaration: DLRMDeclaration,
    training: Training,
    cells: Mapping[str, FeatureCells],
) -> None:
    for feature in declaration.sparse_features:
        if feature.table in counts:
            column, place = sided.chunk.columns[feature.name], _place(sided, feature.name, cells)
            ids, lengths = raw_ids(column, feature, declaration.training.separator, place)
            good = training if place.cells is None else training & ~place.cells.mask
            mask = np.repeat(good, lengths)
            counts[feature.table].add(ids[mask] if isinstance(ids, np.ndarray) else ids.filter(mask))


def _place(sided: SidedChunk, column: str, cells: Mapping[str, FeatureCells]) -> Place:
    """``cells``: taken down before, so what is taken down again is no news."""
    chunk = sided.chunk
    return Place(
        source=chunk.source,
        first_row=chunk.first_row,
        column=column,
        wrong=sided.wrong,
        cells=cells.get(column),
    )


def _with_statistics(declaration: DLRMDeclaration, moments: dict[str, Moments]) -> DLRMDeclaration:
    features = [
        msgspec.structs.replace(feature, mean=moments[feature.name].mean, std=moments[feature.name].std)
        if feature.name in moments
        else feature
        for feature in declaration.dense_features
    ]
    return msgspec.structs.replace(declaration, dense_features=features)


def _vocabularies(declaration: DLRMDeclaration, counts: dict[str, IdCounts]) -> Vocabularies | None:
    if not counts:
        return None
    ordered = {
        table: ids.ordered(
            most=declaration.vocabulary_room(table), min_count=declaration.table(table).min_count
        )
        for table, ids in counts.items()
    }
    for table, found in ordered.items():
        _log(declaration, table, found)
    return build_vocabularies({table: found.ids for table, found in ordered.items()})


def _log(declaration: DLRMDeclaration, table: str, found: Ordered) -> None:
    strict = [
        f.name for f in declaration.sparse_features if f.table == table and f.out_of_vocabulary == "error"
    ]
    logger.log(
        logging.WARNING if strict and found.left_out else logging.INFO,
        'table "%s": %d of %d ids have a row of their own; the others come %d times in the training part%s',
        table,
        len(found.ids),
        found.distinct,
        found.left_out,
        f", and are left out of the bags of {', '.join(strict)}, which refuse them in requests"
        if strict and found.left_out
        else "",
    )

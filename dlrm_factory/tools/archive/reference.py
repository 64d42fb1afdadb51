"""Held-out samples → the reference that serving is compared with."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from dlrm_factory.config import DLRMDeclaration
from dlrm_factory.features.ids import mix_int64
from dlrm_factory.monitoring.reference import MAX_CELLS, IdBins, NumberBins, Reference
from dlrm_factory.weights.held_out import UNLABELLED, HeldOut

__all__ = ["MIN_SAMPLES", "make_reference"]

# Fewer and chance alone looks like drift.
MIN_SAMPLES = 1000
_BINS = 10
_PSEUDO_COUNT = 0.5

Int64 = npt.NDArray[np.int64]


def make_reference(held_out: HeldOut, declaration: DLRMDeclaration) -> Reference | None:
    """Bins of scores, dense features and ids with their shares among ``held_out``; None for too few samples.

    The samples are those that training held out: of the same source as those it learned from, the latest where the
    split is by time, and their scores are not flattered by having been learned.
    """
    samples = len(held_out.batch)
    if samples < MIN_SAMPLES:
        return None
    batch = held_out.batch
    # Of the first probability, by which scores are watched.
    labels, logits = held_out.labels[:, 0], held_out.logits[:, 0]
    ends = np.cumsum(batch.lengths.sum(axis=1))
    sparse = {}
    for f, feature in enumerate(declaration.sparse_features):
        start = int(ends[f - 1]) if f else 0
        rows = declaration.table(feature.table).num_embeddings
        sparse[feature.name] = _id_bins(batch.values[start : int(ends[f])], batch.lengths[f], rows)
    return Reference(
        samples=samples,
        mean_label=float(labels[labels != UNLABELLED].mean()),
        mean_score=float((1 / (1 + np.exp(-logits.astype(np.float64)))).mean()),
        scores=_number_bins(logits),
        dense={name: _number_bins(batch.dense[:, i]) for i, name in enumerate(declaration.dense_names)},
        sparse=sparse,
    )


def _number_bins(values: npt.NDArray[np.float32]) -> NumberBins:
    """Bins of about equal shares; fewer where many values are equal."""
    quantiles = np.quantile(values, np.arange(1, _BINS) / _BINS, method="inverted_cdf")
    edges = np.unique(quantiles.astype(np.float32))
    edges = edges[edges < values.max()]  # nothing would be above
    counts = np.bincount(np.searchsorted(edges, values), minlength=len(edges) + 1)
    return NumberBins(edges=[float(str(edge)) for edge in edges], shares=_shares(counts))


def _id_bins(values: Int64, lengths: npt.NDArray[np.int32], rows: int) -> IdBins:
    """Bins of cells of like popularity, from one half of the samples; their shares are from the other half.

    Were both from the same samples, cells that are popular there by chance would look less popular ever after.
    """
    cells = min(rows, MAX_CELLS)
    of_id = values if rows == cells else (mix_int64(values) % np.uint64(cells)).astype(np.int64)
    sample = np.repeat(np.arange(len(lengths)), lengths)
    first = np.bincount(of_id[sample % 2 == 0], minlength=cells)
    second = np.bincount(of_id[sample % 2 == 1], minlength=cells)
    bin_of = _popularity_bins(first)
    counts = np.bincount(bin_of, weights=second, minlength=int(bin_of.max()) + 1)
    empty = np.count_nonzero(lengths[1::2] == 0)
    return IdBins(
        cells="".join(f"{each:x}" for each in bin_of.tolist()), shares=_shares(np.append(counts, empty))
    )


def _popularity_bins(counts: Int64) -> Int64:
    """Bin of each cell, the most popular first; cells without an id have the last bin."""
    order = np.argsort(-counts, kind="stable")
    total = max(int(counts.sum()), 1)
    # Share of what is more popular than the cell.
    above = (np.cumsum(counts[order]) - counts[order]) / total
    bins = np.minimum((above * _BINS).astype(np.int64), _BINS - 1)
    bins[counts[order] == 0] = _BINS
    _, bins = np.unique(bins, return_inverse=True)
    found = np.empty(len(counts), dtype=np.int64)
    found[order] = bins
    return found


def _shares(counts: npt.NDArray[np.floating] | Int64) -> list[float]:
    shares = (counts + _PSEUDO_COUNT) / (counts.sum() + _PSEUDO_COUNT * len(counts))
    return [float(f"{share:.6g}") for share in shares]

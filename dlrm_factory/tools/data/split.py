"""Which rows train, which are held out, and the order of an epoch: all from row numbers and the seed."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from dlrm_factory.features.ids import hash_int64

__all__ = ["BLOCK_ROWS", "epoch_order", "epoch_windows", "is_held_out", "is_validation", "split_rows"]

Int64 = npt.NDArray[np.int64]
_STEPS = 2**53

# Read together from a mapped dataset. Of 4 bytes a row that is 64 KiB, as much as Linux maps at a fault.
BLOCK_ROWS = 16_384


def split_rows(rows: int, *, holdout: float, seed: int) -> tuple[Int64, Int64]:
    """Row numbers (from 0) that train, and those held out; both ascending."""
    held_out = is_held_out(np.arange(rows, dtype=np.int64), holdout=holdout, seed=seed)
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def is_held_out(rows: Int64, *, holdout: float, seed: int) -> npt.NDArray[np.bool_]:
    """Which of the row numbers ``rows`` are held out, bool [len(rows)].

    A row is if SplitMix64(row xor SplitMix64(seed)), scaled to [0, 1), is below ``holdout``. So a
    row's side depends on its number and the seed alone, not on the batch size or on how many rows follow.
    """
    salt = hash_int64(np.array([seed], dtype=np.int64), 2**62)
    held_out: npt.NDArray[np.bool_] = hash_int64(rows ^ salt, _STEPS) < holdout * _STEPS
    return held_out


def is_validation(rows: Int64, *, share: float, seed: int) -> npt.NDArray[np.bool_]:
    """Tell which row numbers ``rows`` would be validation rows, bool [len(rows)], were all of them training rows.

    As `is_held_out`, by another hash, so that it says nothing of the side.
    """
    found: npt.NDArray[np.bool_] = is_held_out(~rows, holdout=share, seed=seed)
    return found


def epoch_order(rows: Int64, *, seed: int, epoch: int) -> Int64:
    """``rows`` shuffled anew for each epoch."""
    return np.random.default_rng([seed, epoch]).permutation(rows)


def epoch_windows(rows: Int64, *, seed: int, epoch: int, blocks: int) -> Iterator[Int64]:
    """``rows``, ascending, shuffled anew for each epoch so that few of them are needed at a time: int64 pieces.

    Row r lies in block r // `BLOCK_ROWS`. The blocks are shuffled and gathered into windows of at most ``blocks``,
    about equal in number; then the rows of each window are shuffled. With one window this is `epoch_order`.
    """
    # Where each block begins among the rows, without going through them all.
    last = int(rows[-1]) // BLOCK_ROWS if len(rows) else -1
    edges = np.searchsorted(rows, np.arange(last + 2, dtype=np.int64) * BLOCK_ROWS)
    filled = np.flatnonzero(np.diff(edges))
    starts, ends = edges[filled], edges[filled + 1]
    windows = -(-len(starts) // blocks)
    if windows <= 1:
        yield epoch_order(rows, seed=seed, epoch=epoch)
        return
    rng = np.random.default_rng([seed, epoch])
    for window in np.array_split(rng.permutation(len(starts)), windows):
        pieces = [rows[starts[block] : ends[block]] for block in np.sort(window).tolist()]
        yield rng.permutation(np.concatenate(pieces))

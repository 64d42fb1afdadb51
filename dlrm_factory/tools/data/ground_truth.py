r"""Clicks from a stated model, so that the best reachable AUC is known.

A click is drawn with probability sigmoid(z), where

    z = BIAS + sum over dense features j of   a_j u_j + b_j (u_j² - 1)
             + sum over sparse features f of  mean of e_f[id] over the ids of the bag (0 for an empty bag);
                                              of weight times e_f[id] if the feature is weighted
             + <p[id of feature g], q[id of feature h]>

with u_j the dense value, transformed as declared and standardised. g and h are the two single-valued features
with fewest ids, but at least FEWEST_IDS each (in the demo model country and item category). The last term is
left out if they make more than MOST_PAIRS pairs: a DLRM would need far more clicks than are generated to
learn, say, each user's taste for each item. e, p and q are normal, a and b of random sign, all drawn from the
seed and scaled so that the three lines above have the variances DENSE, SPARSE and INTERACTION, whatever the
declaration; p and q have RANK dimensions.

Feature values are independent of each other. A feature with 1 < max_length <= 100 has bags of 1 to 5 ids, any
other one id; 2% of all cells are empty. Ids are Zipf-like: P(id k) ∝ 1 / (k + ZIPF_SHIFT).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dlrm_factory.config.declaration import DLRMDeclaration, SparseFeature

__all__ = ["GroundTruth", "distinct_ids", "ground_truth", "longest_bag"]

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
RawBag = tuple[Int64, Int64, "Float64 | None"]

BIAS = -1.5
DENSE, SPARSE, INTERACTION = 0.5, 1.2, 0.8
RANK = 3
FEWEST_IDS = 4
MOST_PAIRS = 2000
ZIPF_SHIFT = 10.0

_MOST_IDS = 5000
_HASH_ROOM = 16  # table rows per generated id, so that few ids share a row
_LONGEST_BAG = 5
_BAGS_UP_TO = 100


def distinct_ids(feature: SparseFeature, num_embeddings: int) -> int:
    """How many different ids are generated for ``feature``."""
    room = num_embeddings // _HASH_ROOM if feature.ids == "hash" else num_embeddings
    return max(2, min(room, _MOST_IDS)) if num_embeddings > 1 else 1


def longest_bag(feature: SparseFeature) -> int:
    """The longest bag that is generated for ``feature``.

    A high max_length, such as the default, limits requests and says little of the data: one id then.
    """
    return min(feature.max_length, _LONGEST_BAG) if feature.max_length <= _BAGS_UP_TO else 1


@dataclass(frozen=True, slots=True, kw_only=True)
class GroundTruth:
    """The model that clicks come from. Features are in declared order.

    Fields:
        linear, quadratic: float64 [dense features], a and b.
        effects: per sparse feature, float64 [ids], e.
        pair: places of g and h among the sparse features; None if none are fit.
        p, q: float64 [ids, RANK].
    """

    linear: Float64
    quadratic: Float64
    effects: tuple[Float64, ...]
    pair: tuple[int, int] | None
    p: Float64
    q: Float64

    def logits(self, dense: Float64, bags: list[RawBag]) -> Float64:
        """z of each sample: float64 [n].

        Args:
            dense: [n, dense features], standardised.
            bags: per sparse feature, ids int64 [lengths.sum()], lengths int64 [n], weights like ids or None.
        """
        z = BIAS + dense @ self.linear + (dense**2 - 1) @ self.quadratic
        for effects, (ids, lengths, weights) in zip(self.effects, bags, strict=True):
            z += _bag_means(effects[ids] if weights is None else effects[ids] * weights, lengths)
        if self.pair is not None:
            z += self._interaction(*(bags[f] for f in self.pair))
        return z

    def _interaction(self, first: RawBag, second: RawBag) -> Float64:
        p, q = (
            np.stack([_bag_means(vectors[ids][:, r], lengths) for r in range(RANK)], axis=1)
            for vectors, (ids, lengths, _) in ((self.p, first), (self.q, second))
        )
        return np.einsum("nr,nr->n", p, q)


def ground_truth(declaration: DLRMDeclaration, seed: int) -> GroundTruth:
    """The ground truth of ``declaration`` and ``seed``; equal arguments give equal models."""
    rng = np.random.default_rng([seed, 0])
    ids = [distinct_ids(f, declaration.table(f.table).num_embeddings) for f in declaration.sparse_features]
    dense = len(declaration.dense_features)
    pair = _pair(declaration, ids)
    vectors = [ids[f] for f in pair] if pair else [0, 0]
    scale = (INTERACTION / RANK) ** 0.25
    return GroundTruth(
        # Half of the variance is quadratic: Var(u²) = 2 for a normal u.
        linear=_signed(rng, dense) * np.sqrt(DENSE / 2 / dense),
        quadratic=_signed(rng, dense) * np.sqrt(DENSE / 4 / dense),
        effects=tuple(
            rng.normal(0, np.sqrt(SPARSE / len(ids) / _mean_reciprocal(longest_bag(f))), n)
            for n, f in zip(ids, declaration.sparse_features, strict=True)
        ),
        pair=pair,
        p=rng.normal(0, scale, (vectors[0], RANK)),
        q=rng.normal(0, scale, (vectors[1], RANK)),
    )


def _mean_reciprocal(longest: int) -> float:
    """Variance of a mean over a bag of 1 to ``longest`` ids, as a share of one id's variance."""
    return float(np.mean(1 / np.arange(1, longest + 1)))


def _signed(rng: np.random.Generator, n: int) -> Float64:
    return rng.choice([-1.0, 1.0], n)


def _pair(declaration: DLRMDeclaration, ids: list[int]) -> tuple[int, int] | None:
    """The two features that interact, in declared order; None if none are fit."""
    enough = [f for f, n in enumerate(ids) if n >= FEWEST_IDS]
    enough.sort(key=lambda f: (longest_bag(declaration.sparse_features[f]), ids[f], f))
    if len(enough) < 2 or ids[enough[0]] * ids[enough[1]] > MOST_PAIRS:
        return None
    first, second = sorted(enough[:2])
    return first, second


def _bag_means(values: Float64, lengths: Int64) -> Float64:
    """float64 [n]: the mean of each bag's values; 0 for an empty bag."""
    samples = np.repeat(np.arange(len(lengths)), lengths)
    sums = np.bincount(samples, weights=values, minlength=len(lengths))
    return sums / np.maximum(lengths, 1)

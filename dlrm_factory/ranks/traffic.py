"""Bytes that cross between the ranks of a plan."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from dlrm_factory.config.declaration import DLRMDeclaration
from dlrm_factory.model.plan import TablePlan
from dlrm_factory.ranks.layout import Stream, layout_of

__all__ = ["Traffic", "plan_traffic"]

_ID, _WEIGHT, _NUMBER, _LOGIT = 4, 4, 4, 4
_LENGTH = 1  # of bags of up to 255 ids


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """Bytes a sample that must cross from one rank, or host, to another.

    Fields:
        ids: of sparse features, with lengths and weights, from the leader.
        dense: dense features, from the leader.
        pooled: vectors, from the ranks that hold rows to the rank that scores the sample.
        logits: to the leader.
    """

    ids: float
    dense: float
    pooled: float
    logits: float

    @property
    def total(self) -> float:
        return self.ids + self.dense + self.pooled + self.logits


def plan_traffic(
    plan: TablePlan,
    declaration: DLRMDeclaration,
    *,
    pooled_bytes: int = 4,
    ids_a_bag: float = 1.0,
    shares: Sequence[float] | None = None,
    between: Literal["ranks", "hosts"] = "ranks",
) -> Traffic:
    """The least that must cross for one sample under ``plan``: what the ranks send, but for the heads of messages.

    Args:
        pooled_bytes: of one number of a pooled vector: 2 where the dense parts take bfloat16.
        ids_a_bag: the mean. Exactly 1 stands for bags of one id each, whose lengths do not cross.
        shares: of the samples, that each rank scores; equal ones if None. Small batches are the leader's alone.
        between: ``hosts`` leaves out what ranks of one host send one another.
    """
    layout = layout_of(plan, declaration)
    size = len(layout.ranks)
    local = plan.hardware.local_world_size if between == "hosts" else 1
    shares = [1 / size] * size if shares is None else shares
    away = [rank for rank in range(size) if rank // local]
    bag = (_ID + _WEIGHT * declaration.is_weighted) * ids_a_bag
    lengths = 0 if ids_a_bag == 1 else _LENGTH
    rows = [declaration.table(feature.table).num_embeddings for feature in declaration.sparse_features]

    def sent(streams: Sequence[Stream]) -> Iterator[float]:
        for stream in streams:
            yield bag * (stream.stop - stream.start) / rows[stream.feature]
            yield lengths if stream.whole else _LENGTH

    own = len(layout.replicated) * (bag + lengths) + len(layout.means_apart) * lengths
    return Traffic(
        ids=sum(sum(sent(layout.ranks[rank].streams)) + own * shares[rank] for rank in away),
        dense=sum(_NUMBER * len(declaration.dense_features) * shares[rank] for rank in away),
        pooled=sum(
            pooled_bytes * part.columns * shares[receiver]
            for sender, part in enumerate(layout.ranks)
            for receiver in range(size)
            if sender // local != receiver // local
        ),
        logits=sum(_LOGIT * declaration.output_columns * shares[rank] for rank in away),
    )

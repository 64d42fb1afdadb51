"""Bytes that cross between the ranks of a plan."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from dlrm_factory.config.declaration import DLRMDeclaration
from dlrm_factory.model.plan import TablePlan
from dlrm_factory.ranks.layout import RankLayout, Stream, layout_of
from dlrm_factory.ranks.parcels import holder_dtype

__all__ = ["Traffic", "ids_of", "plan_traffic", "sequence_numbers"]

_ID, _WEIGHT, _NUMBER, _LOGIT = 4, 4, 4, 4
_LENGTH = 1  # of bags of up to 255 ids


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """Bytes a sample that must cross from one rank, or host, to another.

    Fields:
        ids: of sparse features, with lengths and weights, from the leader.
        dense: dense features, from the leader.
        pooled: vectors, from the ranks that hold rows to the rank that scores the sample.
        sequences: vectors of sequence features, one an id, likewise.
        logits: to the leader.
    """

    ids: float
    dense: float
    pooled: float
    sequences: float
    logits: float

    @property
    def vectors(self) -> float:
        return self.pooled + self.sequences

    @property
    def total(self) -> float:
        return self.ids + self.dense + self.vectors + self.logits


def plan_traffic(
    plan: TablePlan,
    declaration: DLRMDeclaration,
    *,
    number_bytes: int = 4,
    ids_a_bag: float | Sequence[float] = 1.0,
    shares: Sequence[float] | None = None,
    between: Literal["ranks", "hosts"] = "ranks",
) -> Traffic:
    """The least that must cross for one sample under ``plan``: what the ranks send, but for the heads of messages.

    Args:
        number_bytes: of one number of a vector: 2 where the dense parts take bfloat16.
        ids_a_bag: the mean, of all sparse features or of each. Exactly 1 of all stands for bags of one id each, whose
            lengths do not cross.
        shares: of the samples, that each rank scores; equal ones if None. Small batches are the leader's alone.
        between: ``hosts`` leaves out what ranks of one host send one another.
    """
    layout = layout_of(plan, declaration)
    size = len(layout.ranks)
    local = plan.hardware.local_world_size if between == "hosts" else 1
    shares = [1 / size] * size if shares is None else shares
    away = [rank for rank in range(size) if rank // local]
    ids = ids_of(declaration, ids_a_bag)
    lengths = 0 if all(each == 1 for each in ids) else _LENGTH
    rows = [declaration.table(feature.table).num_embeddings for feature in declaration.sparse_features]
    id_bytes = _ID + _WEIGHT * declaration.is_weighted

    def sent(streams: Sequence[Stream]) -> Iterator[float]:
        for stream in streams:
            yield id_bytes * ids[stream.feature] * (stream.stop - stream.start) / rows[stream.feature]
            yield lengths if stream.whole else _LENGTH

    own = sum(id_bytes * ids[feature] + lengths for feature in layout.replicated)
    own += len(layout.lengths_apart) * lengths
    own += holder_dtype(size).itemsize * sum(
        ids[feature] for feature in layout.sequences if len(layout.parts_of(feature)) > 1
    )
    pooled = [float(part.columns) for part in layout.ranks]
    sequences = [sequence_numbers(part, ids, declaration) for part in layout.ranks]

    def crossing(numbers: Sequence[float]) -> float:
        return sum(
            number_bytes * numbers[sender] * shares[receiver]
            for sender in range(size)
            for receiver in range(size)
            if sender // local != receiver // local
        )

    return Traffic(
        ids=sum(sum(sent(layout.ranks[rank].streams)) + own * shares[rank] for rank in away),
        dense=sum(_NUMBER * len(declaration.dense_features) * shares[rank] for rank in away),
        pooled=crossing(pooled),
        sequences=crossing(sequences),
        logits=sum(_LOGIT * declaration.output_columns * shares[rank] for rank in away),
    )


def ids_of(declaration: DLRMDeclaration, ids_a_bag: float | Sequence[float]) -> list[float]:
    """Ids that a bag of each sparse feature has on average."""
    if isinstance(ids_a_bag, (int, float)):
        return [ids_a_bag] * len(declaration.sparse_features)
    return list(ids_a_bag)


def sequence_numbers(part: RankLayout, ids: Sequence[float], declaration: DLRMDeclaration) -> float:
    """Numbers of sequences' vectors that a rank looks up for a sample. ``ids``: in a bag of each sparse feature."""
    found = 0.0
    for block in part.sequences:
        stream, rows = part.streams[block.stream], declaration.table(block.table).num_embeddings
        found += block.columns * ids[block.feature] * (stream.stop - stream.start) / rows
    return found

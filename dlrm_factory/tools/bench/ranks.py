"""Batch → logits by groups of ranks on this host, against one process without a group."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import torch

from dlrm_factory.batch import FeatureBatch, to_dense
from dlrm_factory.config import DLRMDeclaration
from dlrm_factory.ranks import RankedScorer, RankGroup, StepTimes, follow, load_rank
from dlrm_factory.ranks.leader import MAX_SLICE, MIN_SPREAD
from dlrm_factory.ranks.traffic import plan_traffic
from dlrm_factory.scorer import Scorer
from dlrm_factory.tools.bench.score import RandomWeights, one_hot_batch
from dlrm_factory.tools.launch import launch
from dlrm_factory.weights.sealed import seal_weights

__all__ = ["RankTiming", "batch_of", "measure_ranks"]

# A busy host is no lost rank.
_TIMEOUT_S = 120.0
_PINGS = 200
_MIN_CALLS = 5
_CALLS_A_TURN = 8


@dataclass(frozen=True, kw_only=True)
class RankTiming:
    """One batch size in one group. The group and one process take turns: call by call, of large batches 8 calls each.

    Fields:
        ranks, batch: processes, and samples at once.
        engine: of the dense parts, ``eager`` or ``compiled``.
        alone, alone_p99: median milliseconds of one process without a group, and their 99th percentile.
        p50, p99: milliseconds of the group.
        scatter, lookup, exchange, dense, gather: median milliseconds of the parts; lookup, exchange and dense of the
            slowest rank.
        sent: bytes a sample that ranks sent one another, heads of messages included.
        least: bytes a sample that must cross under the plan.
        ping: median milliseconds of a message of 256 bytes to each other rank and one of 64 bytes back, and nothing
            else.
    """

    ranks: int
    batch: int
    engine: str
    alone: float
    alone_p99: float
    p50: float
    p99: float
    scatter: float
    lookup: float
    exchange: float
    dense: float
    gather: float
    sent: float
    least: float
    ping: float

    @property
    def samples_per_s(self) -> float:
        """Times of one batch after the other."""
        return 1e3 * self.batch / self.p50


def measure_ranks(
    declaration: DLRMDeclaration,
    *,
    groups: Sequence[int],
    batches: Sequence[int],
    seconds: float = 2.0,
    threads: int = 1,
    compiled: bool = True,
    observe: Callable[[str], None] = lambda _: None,
) -> list[RankTiming]:
    """Time each group and batch size for about ``seconds`` with random weights.

    Bags have one id each, and sequences as many as their ``pooling_factor`` says.
    What is scored is one batch after the other: of so many samples in one request, or in several that wait together.

    ``groups``: numbers of processes; ``threads``: of torch, in each process.
    """
    features = [
        msgspec.structs.replace(f, ids="index", out_of_vocabulary=None) for f in declaration.sparse_features
    ]
    declaration = msgspec.structs.replace(declaration, sparse_features=features)
    timings: list[RankTiming] = []
    with tempfile.TemporaryDirectory() as folder:
        observe("sealing random weights")
        seal_weights(RandomWeights(declaration), Path(folder))
        for ranks in groups:
            observe(f"a group of {ranks}")
            timings += launch(
                _measure_rank, Path(folder), list(batches), seconds, threads, compiled, processes=ranks
            )
    return timings


def _measure_rank(
    folder: Path, batches: list[int], seconds: float, threads: int, compiled: bool
) -> list[RankTiming]:
    torch.set_num_threads(threads)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    group = RankGroup.join(timeout_s=_TIMEOUT_S)
    scorer = load_rank(folder, group)
    ping = _ping(group)
    if group.rank:
        follow(scorer, group, folder=folder)
        return []
    ranked = RankedScorer(scorer, group, on_loss=lambda _: None)
    try:
        if compiled:
            ranked.compile(folder)
        return [
            _measure(
                ranked,
                scorer,
                batch_of(scorer.declaration, size),
                seconds,
                group.size,
                ping,
            )
            for size in batches
        ]
    finally:
        ranked.stop()


def _ping(group: RankGroup) -> float:
    """Median milliseconds of a message to each other rank and one back; every rank calls it."""
    given, answer = torch.zeros(256, dtype=torch.uint8), torch.zeros(16)
    taken = []
    for _ in range(_PINGS):
        start = time.perf_counter()
        if group.rank:
            group.data.recv([given], 0, 0).wait()
            group.data.send([answer], 0, 0).wait()
            continue
        works = [group.data.recv([torch.empty_like(answer)], rank, 0) for rank in range(1, group.size)]
        works += [group.data.send([given], rank, 0) for rank in range(1, group.size)]
        for work in works:
            work.wait()
        taken.append(time.perf_counter() - start)
    return 1e3 * statistics.median(taken) if taken else 0.0


def _measure(
    ranked: RankedScorer, alone: Scorer, batch: FeatureBatch, seconds: float, ranks: int, ping: float
) -> RankTiming:
    for _ in range(3):
        ranked.logits(batch)
        _score_alone(alone, batch)
    together: list[float] = []
    single: list[float] = []
    steps: list[StepTimes] = []
    end = time.perf_counter() + seconds
    # Lone requests come after other work, large batches after one another.
    turn = 1 if len(batch) < MIN_SPREAD else _CALLS_A_TURN
    while time.perf_counter() < end or len(together) < _MIN_CALLS:
        for _ in range(turn):
            start = time.perf_counter()
            ranked.logits(batch)
            together.append(time.perf_counter() - start)
            assert ranked.times is not None
            steps.append(ranked.times)
        for _ in range(turn):
            start = time.perf_counter()
            _score_alone(alone, batch)
            single.append(time.perf_counter() - start)

    def median(part: Callable[[StepTimes], float]) -> float:
        return 1e3 * statistics.median(part(step) for step in steps)

    return RankTiming(
        ranks=ranks,
        batch=len(batch),
        engine=ranked.engine,
        alone=1e3 * statistics.median(single),
        alone_p99=1e3 * float(np.percentile(single, 99)),
        p50=1e3 * statistics.median(together),
        p99=1e3 * float(np.percentile(together, 99)),
        scatter=median(lambda step: step.scatter),
        lookup=median(lambda step: step.lookup),
        exchange=median(lambda step: step.exchange),
        dense=median(lambda step: step.dense),
        gather=median(lambda step: step.gather),
        sent=steps[0].sent / len(batch),
        least=_least(ranked, len(batch)),
        ping=ping,
    )


def batch_of(declaration: DLRMDeclaration, size: int) -> FeatureBatch:
    """Random batch of ``size`` samples: one id a bag, and sequences of `_ids_a_bag`."""
    ids = _ids_a_bag(declaration)
    if set(ids) == {1}:
        return msgspec.structs.replace(one_hot_batch(declaration, size), one_each=True, in_range=True)
    random, single = np.random.default_rng(1), one_hot_batch(declaration, size)
    rows = [declaration.table(feature.table).num_embeddings for feature in declaration.sparse_features]
    return FeatureBatch(
        dense=single.dense,
        lengths=single.lengths * np.array(ids, dtype=np.int32)[:, None],
        values=np.concatenate(
            [random.integers(0, n, each * size) for n, each in zip(rows, ids, strict=True)]
        ),
        in_range=True,
    )


def _ids_a_bag(declaration: DLRMDeclaration) -> list[int]:
    sequences = declaration.sequence_features
    return [
        max(1, round(feature.pooling_factor or 1)) if feature in sequences else 1
        for feature in declaration.sparse_features
    ]


def _least(ranked: RankedScorer, samples: int) -> float:
    """Bytes a sample that must cross for a batch of `batch_of`."""
    scorer = ranked.scorer
    ranks = scorer.built.plan.hardware.world_size
    steps = [min(MAX_SLICE * ranks, samples - start) for start in range(0, samples, MAX_SLICE * ranks)]
    shares = np.sum([ranked.sizes(step) for step in steps], axis=0) / samples
    return plan_traffic(
        scorer.built.plan,
        scorer.declaration,
        number_bytes=scorer.pooled_dtype.itemsize,
        ids_a_bag=_ids_a_bag(scorer.declaration),
        shares=shares.tolist(),
    ).total


def _score_alone(scorer: Scorer, batch: FeatureBatch) -> None:
    """Score by this process alone: eagerly, the rank's own scorer would go by the sharded model, to other ranks."""
    if scorer.engine == "compiled":
        scorer.logits(batch)
    else:
        scorer.interact(to_dense(batch), scorer.look_up(batch))

"""Rankings, scored with what their candidates share computed once, against the same computed for each candidate."""

from __future__ import annotations

import gc
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain, product
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import torch

from dlrm_factory.batch import FeatureBatch, SharedContext
from dlrm_factory.config import DLRMDeclaration
from dlrm_factory.errors import DataError, near_matches
from dlrm_factory.requests.request import Request
from dlrm_factory.requests.scoring import OutputScorer
from dlrm_factory.requests.service import DLRMService
from dlrm_factory.scorer import Scorer
from dlrm_factory.tools.bench.score import RandomWeights
from dlrm_factory.weights.sealed import seal_weights

__all__ = ["RankingTiming", "context_features", "measure_rankings"]

_MIN_TURNS = 5
_STEPS = 20  # ids of a sequence


@dataclass(frozen=True, kw_only=True)
class RankingTiming:
    """Medians of one ranking, in milliseconds of the process's CPU time; all ways take turns, request by request.

    Fields:
        candidates: of the ranking.
        shared: names of the features in its context.
        joint, once: the scorer, with the dense parts computed for each candidate, and with shared parts once.
        request_joint, request_once: the same from the request's bytes to the answer's.
        ratio: samples/s of the scorer with shared parts once over those without, the median of the turns' ratios.
        request_ratio: the same of whole requests.
        difference: the largest difference of a logit between the two.
    """

    candidates: int
    shared: list[str]
    joint: float
    once: float
    request_joint: float
    request_once: float
    ratio: float
    request_ratio: float
    difference: float


class _Joint:
    """The scorer with nothing computed once but the lookup."""

    def __init__(self, scorer: Scorer) -> None:
        self.declaration = scorer.declaration
        self._scorer = scorer

    def outputs(self, batch: FeatureBatch, shared: SharedContext | None = None) -> npt.NDArray[np.float32]:
        return self._scorer.joint_outputs(batch, shared)


class _Kept:
    """A scorer that keeps what it was last asked."""

    def __init__(self, declaration: DLRMDeclaration) -> None:
        self.declaration = declaration
        self.asked: tuple[FeatureBatch, SharedContext | None] | None = None

    def outputs(self, batch: FeatureBatch, shared: SharedContext | None = None) -> npt.NDArray[np.float32]:
        self.asked = (batch, shared)
        return np.zeros((len(batch), self.declaration.output_columns), dtype=np.float32)


def context_features(declaration: DLRMDeclaration, share: float) -> list[str]:
    """Names of ``share`` of all features: all dense ones, then sparse ones in order.

    Where that is less than all dense ones, sparse ones alone.
    """
    dense, sparse = declaration.dense_names, declaration.sparse_names
    count = math.ceil(share * (len(dense) + len(sparse)))
    return sparse[:count] if count < len(dense) else [*dense, *sparse[: count - len(dense)]]


def measure_rankings(
    declaration: DLRMDeclaration,
    *,
    candidates: Sequence[int],
    contexts: Sequence[list[str]],
    seconds: float = 2.0,
    threads: int = 1,
    compiled: bool = True,
    observe: Callable[[str], None] = lambda _: None,
) -> list[RankingTiming]:
    """Time each size of ranking with each context for about ``seconds``: random weights, one id a bag.

    ``contexts``: names of the features in each. DataError for one that is not declared.
    """
    known = [*declaration.dense_names, *declaration.sparse_names]
    for name in chain.from_iterable(contexts):
        if name not in known:
            raise DataError(
                f'the context\'s "{name}" is not a feature of this model{near_matches(name, known)}'
            )
    torch.set_num_threads(threads)
    features = [
        msgspec.structs.replace(f, ids="index", weighted=False, out_of_vocabulary=None)
        for f in declaration.sparse_features
    ]
    serving = msgspec.structs.replace(
        declaration.serving, max_samples=max(declaration.serving.max_samples, *candidates)
    )
    declaration = msgspec.structs.replace(declaration, sparse_features=features, serving=serving)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        observe("sealing random weights")
        seal_weights(RandomWeights(declaration), folder)
        scorer = Scorer.load(folder)
        if compiled:
            observe("compiling")
            scorer.compile(folder)
        timings = []
        for shared, size in product(contexts, candidates):
            observe(f"{size} candidates, {len(shared)} features in the context")
            timings.append(_measure(scorer, size, shared, seconds))
        return timings


def _measure(scorer: Scorer, size: int, shared: list[str], seconds: float) -> RankingTiming:
    body = json.dumps(_body(scorer.declaration, size, shared)).encode()
    batch, context = _decoded(scorer.declaration, body)
    paths: dict[str, Callable[[], object]] = {
        "joint": lambda: scorer.joint_outputs(batch, context),
        "once": lambda: scorer.outputs(batch, context),
        "request_joint": _asking(_Joint(scorer), body),
        "request_once": _asking(scorer, body),
    }
    medians = _medians(paths, seconds)
    difference = np.abs(scorer.joint_outputs(batch, context) - scorer.outputs(batch, context)).max()
    return RankingTiming(candidates=size, shared=shared, difference=float(difference), **medians)


def _body(declaration: DLRMDeclaration, size: int, shared: list[str]) -> dict[str, Any]:
    random = np.random.default_rng(1)
    columns: dict[str, list[Any]] = {
        name: random.normal(size=size).round(3).tolist() for name in declaration.dense_names
    }
    for feature in declaration.sparse_features:
        rows = declaration.table(feature.table).num_embeddings
        if declaration.table(feature.table).pooling == "none":
            steps = min(feature.max_length, _STEPS)
            columns[feature.name] = random.integers(0, rows, (size, steps)).tolist()
        else:
            columns[feature.name] = random.integers(0, rows, size).tolist()
    context = {name: columns[name][0] for name in shared}
    own = [name for name in columns if name not in context]
    return {"context": context, "candidates": [{name: columns[name][i] for name in own} for i in range(size)]}


def _decoded(declaration: DLRMDeclaration, body: bytes) -> tuple[FeatureBatch, SharedContext | None]:
    kept = _Kept(declaration)
    _asking(kept, body)()
    assert kept.asked is not None
    return kept.asked


def _asking(scorer: OutputScorer, body: bytes) -> Callable[[], object]:
    service = DLRMService(scorer)

    def ask() -> None:
        (answer,) = service.handle([Request(body)])
        assert answer.status == 200, answer.body

    return ask


def _medians(paths: dict[str, Callable[[], object]], seconds: float) -> dict[str, float]:
    for run in paths.values():
        run()
    gc.collect()
    gc.freeze()  # as a worker does when it has loaded
    taken: dict[str, list[float]] = {name: [] for name in paths}
    end = time.perf_counter() + seconds
    order = list(paths)
    while time.perf_counter() < end or len(taken["once"]) < _MIN_TURNS:
        for name in order:
            start = time.process_time()
            paths[name]()
            taken[name].append(time.process_time() - start)
        order.reverse()
    medians = {name: 1e3 * statistics.median(times) for name, times in taken.items()}
    return medians | {
        "ratio": _ratio(taken["joint"], taken["once"]),
        "request_ratio": _ratio(taken["request_joint"], taken["request_once"]),
    }


def _ratio(slow: Sequence[float], fast: Sequence[float]) -> float:
    """Median of the ratios turn by turn: a busy moment hits both sides of one."""
    return statistics.median(a / b for a, b in zip(slow, fast, strict=True))

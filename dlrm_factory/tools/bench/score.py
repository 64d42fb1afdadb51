"""Batch → logits: the compiled scorer against the eager DistributedModelParallel model, and the raw lookup."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import torch

from dlrm_factory.batch import FeatureBatch, to_dense, to_keyed_jagged_tensors
from dlrm_factory.compiled import Precision, best_precision
from dlrm_factory.config import DLRMDeclaration
from dlrm_factory.factory import DLRMFactory
from dlrm_factory.features import Vocabularies
from dlrm_factory.model.model import make_model
from dlrm_factory.scorer import Scorer, probabilities
from dlrm_factory.weights.held_out import HeldOut
from dlrm_factory.weights.rows import RandomRows
from dlrm_factory.weights.sealed import seal_weights
from dlrm_factory.weights.seen_ids import SeenIds

__all__ = ["RandomWeights", "ScoreTiming", "measure_scores", "one_hot_batch", "time_batch"]


@dataclass(frozen=True, kw_only=True)
class ScoreTiming:
    """Medians, in milliseconds, of one batch size; the paths are timed in turn, call by call.

    Fields:
        eager: the sharded model, as TorchRec runs it.
        compiled: the lookup and the compiled dense parts; None if they could not be compiled.
        lookup: the lookup alone.
        limit: the lookup and the dense parts' matrix products alone, which no scorer of this kind can beat.
        difference: the largest difference of a probability, compiled from eager.
    """

    batch: int
    eager: float
    compiled: float | None
    lookup: float
    limit: float
    difference: float | None

    @property
    def ratio(self) -> float | None:
        """Compiled samples/s over the eager ones."""
        return None if self.compiled is None else self.eager / self.compiled


class RandomWeights:
    """A declaration's random weights, in the form that `seal_weights` takes.

    ``precision: auto`` becomes this CPU's best, as it is for a trained model: random weights have no held-out samples.
    """

    def __init__(self, declaration: DLRMDeclaration) -> None:
        serving = declaration.serving
        if serving.precision == "auto":
            serving = msgspec.structs.replace(serving, precision=best_precision())
        self.declaration = msgspec.structs.replace(declaration, serving=serving)
        self.vocabularies: Vocabularies | None = None
        self.held_out: HeldOut | None = None
        self.seen_ids: SeenIds | None = None
        self.table_rows = RandomRows(declaration, declaration.training.seed).table_rows

    def dense_state(self) -> dict[str, torch.Tensor]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.declaration.training.seed)
            model = make_model(self.declaration)
        return {key: tensor for key, tensor in model.state_dict().items() if not tensor.is_meta}


def measure_scores(
    declaration: DLRMDeclaration,
    *,
    batches: Sequence[int],
    seconds: float = 2.0,
    threads: int = 1,
    precision: Precision | None = None,
    observe: Callable[[str], None] = lambda _: None,
) -> list[ScoreTiming]:
    """Time each batch size for about ``seconds`` with random weights and one id a bag."""
    torch.set_num_threads(threads)
    options = msgspec.structs.replace(declaration.serving, precision=precision or best_precision())
    # Batches are made of rows, so whatever becomes of raw ids before does not matter here.
    features = [
        msgspec.structs.replace(f, ids="index", out_of_vocabulary=None) for f in declaration.sparse_features
    ]
    declaration = msgspec.structs.replace(declaration, serving=options, sparse_features=features)
    with tempfile.TemporaryDirectory() as folder:
        observe("sealing random weights")
        seal_weights(RandomWeights(declaration), Path(folder))
        scorer = Scorer.load(Path(folder))
        reference = DLRMFactory(declaration).build(weights=Path(folder))
        observe("compiling")
        scorer.compile(Path(folder))
        timings = []
        for batch in batches:
            observe(f"batch {batch}")
            timings.append(time_batch(scorer, Scorer(reference), one_hot_batch(declaration, batch), seconds))
        return timings


def time_batch(scorer: Scorer, eager: Scorer, batch: FeatureBatch, seconds: float) -> ScoreTiming:
    """Time one batch for about ``seconds``, with ``scorer`` and ``eager``, a scorer of the same weights."""
    compiled = scorer.engine == "compiled"
    paths: dict[str, Callable[[], object]] = {
        # Not by way of a scorer, which pads eager batches.
        "eager": lambda: _forward(eager, batch),
        "lookup": lambda: scorer.look_up(batch),
        "limit": _raw_products(scorer, batch),
    }
    if compiled:
        paths["compiled"] = lambda: scorer.logits(batch)
    medians = _interleaved_medians(paths, seconds)
    difference = None
    if compiled:
        fast, slow = (probabilities(path.logits(batch)) for path in (scorer, eager))
        difference = float(np.abs(fast - slow).max())
    return ScoreTiming(
        batch=len(batch),
        eager=medians["eager"],
        compiled=medians.get("compiled"),
        lookup=medians["lookup"],
        limit=medians["limit"],
        difference=difference,
    )


@torch.no_grad()
def _forward(eager: Scorer, batch: FeatureBatch) -> npt.NDArray[np.float32]:
    sparse = to_keyed_jagged_tensors(batch, eager.declaration)
    logits: torch.Tensor = eager.built.model(to_dense(batch), *sparse)
    return logits.reshape(-1).numpy()


def _raw_products(scorer: Scorer, batch: FeatureBatch) -> Callable[[], object]:
    """The lookup, then every linear layer's product and the interaction's, in the precision in use."""
    linears = [module for module in scorer.built.model.module.net.modules() if _is_linear(module)]
    dtype = torch.bfloat16 if scorer.declaration.serving.precision == "bf16" else torch.float32
    size = len(batch)
    inputs = [torch.zeros(size, layer.in_features, dtype=dtype) for layer in linears]
    weights = [layer.weight.detach().to(dtype).t().contiguous() for layer in linears]
    rows = torch.zeros(
        size, len(scorer.declaration.sparse_features) + 1, scorer.declaration.embedding_dim, dtype=dtype
    )

    @torch.no_grad()
    def run() -> None:
        to_dense(batch)
        scorer.look_up(batch)
        torch.bmm(rows, rows.transpose(1, 2))
        for given, weight in zip(inputs, weights, strict=True):
            given @ weight

    return run


def _is_linear(module: torch.nn.Module) -> bool:
    return isinstance(module, torch.nn.Linear)


def _interleaved_medians(paths: dict[str, Callable[[], object]], seconds: float) -> dict[str, float]:
    """Median milliseconds of each path; they take turns, so that a busy moment hits all of them."""
    for run in paths.values():
        for _ in range(3):
            run()
    taken: dict[str, list[float]] = {name: [] for name in paths}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(taken["eager"]) < 5:
        for name, run in paths.items():
            start = time.perf_counter()
            run()
            taken[name].append(time.perf_counter() - start)
    return {name: 1e3 * statistics.median(times) for name, times in taken.items()}


def one_hot_batch(declaration: DLRMDeclaration, size: int) -> FeatureBatch:
    """Random batch of ``size`` samples, one id a bag."""
    random = np.random.default_rng(1)
    rows = [declaration.table(feature.table).num_embeddings for feature in declaration.sparse_features]
    return FeatureBatch(
        dense=random.normal(size=(size, len(declaration.dense_features))).astype(np.float32),
        lengths=np.ones((len(rows), size), dtype=np.int32),
        values=np.concatenate([random.integers(0, count, size) for count in rows]),
    )

"""Batch → scores. What the handler, the command line, tests and benchmarks all call."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from dlrm_factory.batch import (
    FeatureBatch,
    SharedContext,
    pad_rows,
    pad_samples,
    share_pooled,
    split,
    to_dense,
    to_keyed_jagged_tensor,
    with_contexts,
)
from dlrm_factory.compiled import (
    DTYPES,
    CompiledDense,
    DirectLookup,
    Precision,
    best_precision,
    compiled_dense,
)
from dlrm_factory.compiled.dense_net import model_feature_order
from dlrm_factory.compiled.sizes import SIZES, SizedDense
from dlrm_factory.config.declaration import DLRMDeclaration
from dlrm_factory.errors import DLRMError
from dlrm_factory.factory import BuiltDLRM, DLRMFactory
from dlrm_factory.features import Vocabularies
from dlrm_factory.host.memory_limit import memory_limit
from dlrm_factory.weights.few_pages import FewPages
from dlrm_factory.weights.held_out import HELD_OUT_FILE
from dlrm_factory.weights.sealed import SealedWeights

__all__ = ["EAGER_TOLERANCE", "TOLERANCE", "Scorer", "probabilities"]

logger = logging.getLogger(__name__)

Float32 = npt.NDArray[np.float32]
Probes = list[tuple[FeatureBatch, Float32]]  # batches with their eager probabilities

# How far a probability of the compiled dense parts may be from the eager one. Tested on every load.
TOLERANCE: dict[Precision, float] = {"fp32": 1e-4, "bf16": 2e-2}
# How far an eager probability may be from that of the host which sealed the weights. CPUs of other kinds round the
# last bits of float32 otherwise, some 1e-7 of a probability; a wrong row, weight or order shows in the digits before.
EAGER_TOLERANCE = 1e-4


class Scorer:
    """Scores batches with a built model: eagerly, or with compiled dense parts once `compile` has them.

    Each sample's logit depends on that sample alone: the same within 1e-5 (fp32) in any batch.
    A score has two steps, `pool` and `interact`; several pooled parts of a sample may be added in between.
    """

    def __init__(
        self,
        built: BuiltDLRM,
        *,
        lookup: DirectLookup | None = None,
        vocabularies: Vocabularies | None = None,
        is_bounded: bool = False,
        few_pages: FewPages | None = None,
    ) -> None:
        """``lookup`` reads the tables straight from their file; without it the sharded module does.

        Args:
            vocabularies: kept for who encodes requests.
            is_bounded: held-out samples travel with the weights, which bound what a narrower precision costs.
            few_pages: made of the file before its lookups were, for tools: bounds the pages that these keep.
        """
        self.built = built
        self._is_bounded = is_bounded
        self._few_pages = few_pages
        self.vocabularies = vocabularies
        self._lookup = lookup
        self._compiled: SizedDense | None = None
        order = model_feature_order(built.declaration)
        self._to_declared = torch.tensor(np.argsort(order))
        self._to_model = torch.tensor(order)

    @classmethod
    def load(cls, folder: Path, *, device: str | None = None, release: bool = False) -> Scorer:
        """A scorer over the sealed weights in ``folder``, tables mapped, in one process; eager so far.

        ``release``: keep few of the tables' pages in this process's memory, see `FewPages`. For tools, not for servers.
        """
        sealed = SealedWeights(folder)
        few_pages = FewPages(sealed.declaration, sealed.tables) if release else None
        built = DLRMFactory(sealed.declaration).build(weights=sealed, device=device)
        sealed.tables.prepare_lookups(memory_limit())
        on_cpu = built.device.type == "cpu"
        lookup = DirectLookup(sealed.declaration, sealed.tables) if on_cpu else None
        return cls(
            built,
            lookup=lookup,
            vocabularies=sealed.vocabularies,
            is_bounded=(folder / HELD_OUT_FILE).is_file(),
            few_pages=few_pages if on_cpu else None,
        )

    @property
    def declaration(self) -> DLRMDeclaration:
        return self.built.declaration

    @property
    def engine(self) -> str:
        """Engine that scores now: ``eager`` or ``compiled``."""
        return "eager" if self._compiled is None else "compiled"

    @property
    def pooled_dtype(self) -> torch.dtype:
        """Dtype of the pooled vectors that the dense parts take now, without a conversion."""
        return torch.float32 if self._compiled is None else self._compiled.dtype

    @property
    def precision(self) -> Precision:
        """Precision of the dense parts, once compiled: the declared one.

        ``auto`` is this CPU's best, but fp32 where no held-out samples bound what bf16 costs.
        """
        wanted = self.declaration.serving.precision
        if wanted != "auto":
            return wanted
        return best_precision() if self._is_bounded else "fp32"

    def compile(
        self,
        folder: Path,
        *,
        background: bool = False,
        build: bool = True,
        probes: Sequence[FeatureBatch] = (),
    ) -> None:
        """Take the compiled dense parts of the sealed weights in ``folder`` into use, built once for this host.

        Scores stay eager, with a log line, where they cannot be had or do not agree with the eager ones. The first
        process of the host finds that out, and all later ones do as it did (see `dlrm_factory.compiled.dense_library`).

        Args:
            background: return at once, and go on scoring eagerly until they are there.
            build: False takes only what another process has built before.
            probes: batches that it must score as the eager model does, beside some random ones.

        WeightsError if others score with compiled code and here it cannot be used; in the background it is logged.
        """
        if self._lookup is None:
            return
        # Here, not in the thread: TorchRec's forward must not run in two threads at once.
        scored = [
            (batch, probabilities(self.reference_logits(batch)))
            for batch in [*probe_batches(self.declaration), *probes]
        ]
        if background:
            arguments = (folder, build, scored)
            threading.Thread(
                target=self._compile_in_background, args=arguments, daemon=True, name="compile"
            ).start()
        else:
            self._compile(folder, build, scored)

    def logits(self, batch: FeatureBatch, shared: SharedContext | None = None) -> Float32:
        """Click logits, float32 [B]. B may be 0.

        ``shared``: bags that several samples share; each is looked up and pooled once. An empty bag pools to zeros,
        so a shared vector is added to those of its samples.
        """
        if len(batch) == 0:
            return np.empty(0, dtype=np.float32)
        if shared is not None:
            return self.interact(
                to_dense(batch), share_pooled(self.pool(with_contexts(batch, shared)), shared)
            )
        if self._compiled is None or self._lookup is None:
            return self.reference_logits(batch)
        if len(batch) <= SIZES[-1]:
            return self._compiled(to_dense(batch), self._pool_directly(batch, self._compiled.dtype))
        # Of larger batches the pooled vectors would leave the CPU's cache before the dense parts read them.
        return np.concatenate([self.logits(piece) for piece in split(batch, SIZES[-1])])

    @torch.no_grad()
    def reference_logits(self, batch: FeatureBatch) -> Float32:
        """Click logits by the DistributedModelParallel model, eagerly: float32 [B]. B is at least 1."""
        if self._few_pages is None:
            return self._whole_reference_logits(batch)
        return np.concatenate(
            [self._whole_reference_logits(piece) for piece in self._few_pages.pieces(batch)]
        )

    def _whole_reference_logits(self, batch: FeatureBatch) -> Float32:
        padded = pad_samples(batch)
        dense = to_dense(padded, device=self.built.device)
        sparse = to_keyed_jagged_tensor(padded, self.declaration, device=self.built.device)
        logits: torch.Tensor = self.built.model(dense, sparse)
        return logits.reshape(-1)[: len(batch)].float().cpu().numpy()

    @torch.no_grad()
    def pool(self, batch: FeatureBatch) -> torch.Tensor:
        """The pooled vector of every bag, float32 [B, F, D], features in declared order; an empty bag gives zeros.

        B is at least 1.
        """
        return self.pool_sharded(batch) if self._lookup is None else self._pool_directly(batch, torch.float32)

    def _pool_directly(self, batch: FeatureBatch, dtype: torch.dtype) -> torch.Tensor:
        assert self._lookup is not None
        if self._few_pages is None:
            return self._lookup.pool(batch, dtype)
        return torch.cat([self._lookup.pool(piece, dtype) for piece in self._few_pages.pieces(batch)])

    @torch.no_grad()
    def pool_sharded(self, batch: FeatureBatch) -> torch.Tensor:
        """`pool` by the sharded module. With several ranks all must call it, each with its own batch."""
        sparse = to_keyed_jagged_tensor(batch, self.declaration, device=self.built.device)
        pooled: torch.Tensor = self.built.model.module.sparse_arch(sparse)
        return pooled.index_select(1, self._to_declared.to(pooled.device))

    @torch.no_grad()
    def interact(self, dense: torch.Tensor, pooled: torch.Tensor, *, eagerly: bool = False) -> Float32:
        """Click logits, float32 [B], of dense features [B, n] and pooled vectors [B, F, D] in declared order.

        Pooled vectors may be float32 or bfloat16. ``eagerly``: never by compiled code.
        """
        if eagerly or self._compiled is None:
            return self._interact_eagerly(dense, pooled)
        return self._compiled(dense, pooled)

    def _interact_eagerly(self, dense: torch.Tensor, pooled: torch.Tensor) -> Float32:
        model = self.built.model.module
        in_order = pad_rows(pooled.float()).index_select(1, self._to_model.to(pooled.device))
        embedded = model.dense_arch(pad_rows(dense.to(self.built.device)))
        logits: torch.Tensor = model.over_arch(model.inter_arch(embedded, in_order))
        return logits.reshape(-1)[: dense.shape[0]].float().cpu().numpy()

    def _compile_in_background(self, folder: Path, build: bool, probes: Probes) -> None:
        try:
            self._compile(folder, build, probes)
        except DLRMError as error:
            logger.error("Scoring eagerly: %s", error)

    def _compile(self, folder: Path, build: bool, probes: Probes) -> None:
        precision = self.precision
        found = [0.0]

        def try_out(dense_code: CompiledDense) -> str | None:
            found[0] = difference = self._try_out(SizedDense(dense_code, DTYPES[precision]), probes)
            if difference <= TOLERANCE[precision]:
                return None
            return f"Compiled scores differ from eager ones by {difference:.2g}, more than {TOLERANCE[precision]:.2g}"

        dense_code = compiled_dense(folder, self.declaration, precision, try_out=try_out, build=build)
        if dense_code is not None:
            self._compiled = SizedDense(dense_code, DTYPES[precision])
            logger.info("Scoring with compiled dense parts in %s, within %.1e of eager", precision, found[0])

    def _try_out(self, compiled: SizedDense, probes: Probes) -> float:
        """Meet every batch size; gives the largest difference of a probability from the eager one."""
        with torch.no_grad():
            compiled.warm_up(
                len(self.declaration.dense_features),
                len(self.declaration.sparse_features),
                self.declaration.embedding_dim,
            )
        return self._largest_difference(compiled, probes)

    @torch.no_grad()
    def _largest_difference(self, compiled: SizedDense, probes: Probes) -> float:
        """Largest difference of a probability from the eager one, over batches of 1 and of several samples."""
        found = [0.0]
        for batch, eager in probes:
            fast = probabilities(compiled(to_dense(batch), self._pool_directly(batch, compiled.dtype)))
            found.append(float(np.abs(eager - fast).max()))
        return max(found) if np.isfinite(found).all() else np.inf


def probabilities(logits: Float32) -> Float32:
    """Click-through rates in [0, 1]: the sigmoid of ``logits``, float32 [B]."""
    return torch.sigmoid(torch.from_numpy(logits)).numpy()


def probe_batches(declaration: DLRMDeclaration) -> list[FeatureBatch]:
    """Batches of 1 to 200 samples with random dense numbers and bags of 0 to 3 rows, always the same."""
    random = np.random.default_rng(0)
    return [_probe_batch(declaration, size, random) for size in (1, 7, 16, 200)]


def _probe_batch(declaration: DLRMDeclaration, size: int, random: np.random.Generator) -> FeatureBatch:
    lengths = random.integers(0, 4, size=(len(declaration.sparse_features), size)).astype(np.int32)
    rows = [declaration.table(feature.table).num_embeddings for feature in declaration.sparse_features]
    values = [random.integers(0, n, size=int(of.sum())) for n, of in zip(rows, lengths, strict=True)]
    return FeatureBatch(
        dense=random.normal(size=(size, len(declaration.dense_features))).astype(np.float32),
        lengths=lengths,
        values=np.concatenate(values).astype(np.int64),
    )

"""Batch → scores. What the handler, the command line, tests and benchmarks all call."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from dlrm_factory.batch import (
    Embeddings,
    FeatureBatch,
    SharedContext,
    concatenate_embeddings,
    pad_rows,
    pad_samples,
    part_rankings,
    share_embeddings,
    shared_rows,
    split,
    to_dense,
    to_keyed_jagged_tensors,
    with_contexts,
)
from dlrm_factory.compiled import (
    CompiledDense,
    ContextNets,
    DirectLookup,
    Precision,
    best_precision,
    compiled_dense,
    eager_reason,
    pooled_dtype,
)
from dlrm_factory.compiled.probes import probe_batches
from dlrm_factory.compiled.sizes import SIZES, SizedDense
from dlrm_factory.config.declaration import DLRMDeclaration
from dlrm_factory.errors import DLRMError, ModuleError, RequestError
from dlrm_factory.factory import BuiltDLRM, DLRMFactory
from dlrm_factory.features import Vocabularies
from dlrm_factory.host.memory_limit import memory_limit
from dlrm_factory.model.net import Net
from dlrm_factory.weights.few_pages import FewPages
from dlrm_factory.weights.held_out import HELD_OUT_FILE
from dlrm_factory.weights.sealed import SealedWeights

__all__ = ["EAGER_TOLERANCE", "TOLERANCE", "Scorer", "probabilities"]

logger = logging.getLogger(__name__)

Float32 = npt.NDArray[np.float32]
Probes = list[tuple[FeatureBatch, Float32]]  # batches with their eager outputs, comparable

# How far a probability, or a number of a vector by its length, of the compiled dense parts may be from the eager one.
# Tested on every load.
TOLERANCE: dict[Precision, float] = {"fp32": 1e-4, "bf16": 2e-2}
# How far an eager probability may be from that of the host which sealed the weights. CPUs of other kinds round the
# last bits of float32 otherwise, some 1e-7 of a probability; a wrong row, weight or order shows in the digits before.
EAGER_TOLERANCE = 1e-4


class Scorer:
    """Scores batches with a built model: eagerly, or with compiled dense parts once `compile` has them.

    Each sample's outputs depend on that sample alone: the same within 1e-5 (fp32) in any batch. They have two steps,
    `look_up` and `interact`. C: the columns of all outputs, see `DLRMDeclaration.columns_of`.
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
        self._context_nets = (
            None
            if lookup is None or few_pages is not None
            else ContextNets(built.model.module.net.module, built.declaration, lookup)
        )
        # Why `compile` found that this host must score eagerly; None if it has not, or it need not.
        self.eager_reason: str | None = None
        # Of the first probability; of a model without one, of its first output.
        columns = [built.declaration.columns_of(each.name).start for each in built.declaration.probabilities]
        self.first_column = columns[0] if columns else 0

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

        ``auto`` is this CPU's best, but fp32 where no held-out samples bound what bf16 costs, and of a module of the
        user's own.
        """
        wanted = self.declaration.serving.precision
        if wanted != "auto":
            return wanted
        if self.declaration.module is not None:
            return "fp32"
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
        # All here, not in the thread: TorchRec's forward must not run in two threads at once.
        if self._context_nets is not None:
            self._context_nets.expect(self.reference_outputs)
        scored: Probes = []
        for batch in [*probe_batches(self.declaration), *probes]:
            # A module may refuse, or fail on, what no client has sent.
            with contextlib.suppress(ModuleError, RequestError):
                scored.append((batch, self.comparable(self.reference_outputs(batch))))
        if background:
            arguments = (folder, build, scored)
            threading.Thread(
                target=self._compile_in_background, args=arguments, daemon=True, name="compile"
            ).start()
        else:
            self._compile(folder, build, scored)

    def logits(self, batch: FeatureBatch, shared: SharedContext | None = None) -> Float32:
        """Logits of the first probability, float32 [B]. B may be 0. Else as `outputs`."""
        return self.outputs(batch, shared)[:, self.first_column]

    def outputs(self, batch: FeatureBatch, shared: SharedContext | None = None) -> Float32:
        """All outputs' columns, logits of probabilities among them, float32 [B, C]. B may be 0.

        ``shared``: bags and dense features that several samples share. Bags are looked up and pooled once, and what
        the dense parts make of a long ranking's context is computed once where `ContextNet` can.
        """
        if len(batch) == 0:
            return np.empty((0, self.declaration.output_columns), dtype=np.float32)
        if shared is not None:
            return self._shared_outputs(batch, shared)
        if self._compiled is None or self._lookup is None:
            return self.reference_outputs(batch)
        if len(batch) <= SIZES[-1]:
            return self.interact(to_dense(batch), self._look_up_directly(batch, self._compiled.dtype))
        # Of larger batches the vectors would leave the CPU's cache before the dense parts read them.
        return np.concatenate([self.outputs(piece) for piece in split(batch, SIZES[-1])])

    def _shared_outputs(self, batch: FeatureBatch, shared: SharedContext) -> Float32:
        if self._net.shares:
            return self._interact_once(batch, shared)
        once = None if self._context_nets is None else self._context_nets.of(self.pooled_dtype)
        if once is None:
            return self.joint_outputs(batch, shared)
        apart = once.worthwhile(batch, shared)
        if not apart:
            return self.joint_outputs(batch, shared)
        outputs = np.empty((len(batch), self.declaration.output_columns), dtype=np.float32)
        for part in part_rankings(batch, shared, apart=apart):
            if part.context is not None and (part.rows[0], part.rows[-1] + 1) in apart:
                outputs[part.rows] = once(part.samples, part.context)
            else:
                outputs[part.rows] = self.joint_outputs(part.samples, part.shared)
        return outputs

    def joint_outputs(self, batch: FeatureBatch, shared: SharedContext | None) -> Float32:
        """`outputs` with the dense parts computed for each sample: what is shared is looked up and pooled once.

        An empty bag pools to zeros, so a shared vector is added to those of its samples.
        """
        if shared is None:
            return self.outputs(batch)
        return self.interact(to_dense(batch), self._look_up_shared(batch, shared))

    def _look_up_shared(self, batch: FeatureBatch, shared: SharedContext) -> Embeddings:
        both = with_contexts(batch, shared)
        if self._lookup is None:
            return share_embeddings(self.look_up(both), shared.spans)
        # A shared vector is added to zeros: nothing is lost by adding in the dtype that the dense parts take.
        with torch.no_grad():
            return share_embeddings(self._look_up_directly(both, self.pooled_dtype), shared.spans)

    def _interact_once(self, batch: FeatureBatch, shared: SharedContext) -> Float32:
        """All outputs, the module's own shared part computed once for each ranking whose context has its features."""
        names, declaration = self._net.shared_features, self.declaration
        rows = shared_rows(
            batch,
            shared,
            dense=[i for i, name in enumerate(declaration.dense_names) if name in names],
            sparse=[i for i, name in enumerate(declaration.sparse_names) if name in names],
        )
        dense, found = to_dense(batch), self._look_up_shared(batch, shared)
        return self.interact(dense, self._with_shared(dense, found, rows))

    def reference_logits(self, batch: FeatureBatch) -> Float32:
        """Logits of the first probability by `reference_outputs`, float32 [B]. B is at least 1."""
        return self.reference_outputs(batch)[:, self.first_column]

    @torch.no_grad()
    def reference_outputs(self, batch: FeatureBatch) -> Float32:
        """All outputs by the DistributedModelParallel model, eagerly: float32 [B, C]. B is at least 1."""
        if self._few_pages is None:
            return self._whole_reference_outputs(batch)
        return np.concatenate(
            [self._whole_reference_outputs(piece) for piece in self._few_pages.pieces(batch)]
        )

    def _whole_reference_outputs(self, batch: FeatureBatch) -> Float32:
        padded = pad_samples(batch)
        dense = to_dense(padded, device=self.built.device)
        sparse = to_keyed_jagged_tensors(padded, self.declaration, device=self.built.device)
        found: torch.Tensor = self.built.model(dense, *sparse)
        return found[: len(batch)].float().cpu().numpy()

    @torch.no_grad()
    def look_up(self, batch: FeatureBatch) -> Embeddings:
        """Vectors of all features in float32; an empty bag pools to zeros. B is at least 1."""
        if self._lookup is None:
            return self.look_up_sharded(batch)
        return self._look_up_directly(batch, torch.float32)

    def _look_up_directly(self, batch: FeatureBatch, dtype: torch.dtype) -> Embeddings:
        assert self._lookup is not None
        if self._few_pages is None:
            return self._lookup.look_up(batch, dtype)
        return concatenate_embeddings(
            [self._lookup.look_up(piece, dtype) for piece in self._few_pages.pieces(batch)]
        )

    @torch.no_grad()
    def look_up_sharded(self, batch: FeatureBatch) -> Embeddings:
        """`look_up` by the sharded module. With several ranks all must call it, each with its own batch."""
        sparse = to_keyed_jagged_tensors(batch, self.declaration, device=self.built.device)
        return Embeddings(*self.built.model.module.sparse_arch(*sparse))

    @torch.no_grad()
    def interact(self, dense: torch.Tensor, found: Embeddings, *, eagerly: bool = False) -> Float32:
        """All outputs, float32 [B, C], of dense features [B, n] and embeddings.

        Pooled vectors may be float32 or bfloat16. ``eagerly``: never by compiled code.
        """
        if eagerly or self._compiled is None:
            return self._interact_eagerly(dense, found)
        found = self._with_shared(dense, found)
        try:
            return self._compiled(dense, found)
        except RuntimeError as error:
            if self.declaration.module is None:
                raise
            # Such as an index outside of a table of the module's own. Eagerly the error names the module's line.
            reason = str(error).partition("\n")[0]
            logger.warning("Compiled code failed; scoring %d samples eagerly: %s", len(dense), reason)
            return self._interact_eagerly(dense, found)

    @property
    def _net(self) -> Net:
        net: Net = self.built.model.module.net
        return net

    @torch.no_grad()
    def _with_shared(
        self, dense: torch.Tensor, found: Embeddings, rows: npt.NDArray[np.int64] | None = None
    ) -> Embeddings:
        """``found`` with what the module's own shared part makes of it, eagerly; as it is if there is no such part.

        ``rows``: int64 [B], the sample that each sample has this part from; None for itself.
        """
        if not self._net.shares or found.shared:
            return found
        if rows is None:
            parts = self._net.shared_part(dense, found.pooled.float(), found.sequences, found.lengths)
            return replace(found, shared=parts)
        distinct, source = (torch.from_numpy(each) for each in np.unique(rows, return_inverse=True))
        of_distinct = [tensor.index_select(0, distinct) for tensor in (dense, *found.all)]
        parts = self._with_shared(of_distinct[0], found.of(of_distinct[1:])).shared
        return replace(found, shared=[part.index_select(0, source) for part in parts])

    def _interact_eagerly(self, dense: torch.Tensor, found: Embeddings) -> Float32:
        net, samples = self.built.model.module.net, dense.shape[0]
        rows = [pad_rows(tensor) for tensor in found.all]
        rows[0] = rows[0].float()
        padded = found.of([tensor.to(self.built.device) for tensor in rows])
        numbers = pad_rows(dense.to(self.built.device))
        outputs: torch.Tensor = net(numbers, padded.pooled, padded.sequences, padded.lengths, padded.shared)
        return outputs[:samples].float().cpu().numpy()

    def _compile_in_background(self, folder: Path, build: bool, probes: Probes) -> None:
        try:
            self._compile(folder, build, probes)
        except DLRMError as error:
            logger.error("Scoring eagerly: %s", error)

    def _compile(self, folder: Path, build: bool, probes: Probes) -> None:
        precision = self.precision
        dtype = pooled_dtype(self.declaration, precision)
        found = [0.0]

        def try_out(dense_code: CompiledDense) -> str | None:
            found[0] = difference = self._try_out(SizedDense(dense_code, dtype), probes)
            if difference <= TOLERANCE[precision]:
                return None
            return f"Compiled scores differ from eager ones by {difference:.2g}, more than {TOLERANCE[precision]:.2g}"

        dense_code = compiled_dense(folder, self.declaration, precision, try_out=try_out, build=build)
        self.eager_reason = eager_reason(folder, self.declaration, precision)
        if dense_code is not None:
            if self._context_nets is not None:
                self._context_nets.use(precision, TOLERANCE[precision])
            self._compiled = SizedDense(dense_code, dtype)
            logger.info("Scoring with compiled dense parts in %s, within %.1e of eager", precision, found[0])

    def _try_out(self, compiled: SizedDense, probes: Probes) -> float:
        """Meet every batch size; gives the largest difference from the eager outputs."""
        with torch.no_grad():
            compiled.warm_up(self.declaration, self._with_shared)
        return self._largest_difference(compiled, probes)

    @torch.no_grad()
    def _largest_difference(self, compiled: SizedDense, probes: Probes) -> float:
        """Largest difference from the eager outputs, over batches of 1 and of several samples."""
        found = [0.0]
        for batch, eager in probes:
            dense = to_dense(batch)
            outputs = compiled(dense, self._with_shared(dense, self._look_up_directly(batch, compiled.dtype)))
            fast = self.comparable(outputs)
            found.append(float(np.abs(eager - fast).max()))
        return max(found) if np.isfinite(found).all() else np.inf

    def comparable(self, outputs: Float32) -> Float32:
        """Outputs, float32 [B, C], as numbers about 1: probabilities, and vectors by the size of each."""
        made = []
        for output in self.declaration.all_outputs:
            part = outputs[:, self.declaration.columns_of(output.name)]
            if output.kind == "probability":
                made.append(probabilities(part))
            else:
                made.append(part / np.maximum(np.linalg.norm(part, axis=1, keepdims=True), 1.0))
        return np.concatenate(made, axis=1)


def probabilities(logits: Float32) -> Float32:
    """Click-through rates in [0, 1]: the sigmoid of ``logits``, float32 of any shape."""
    return torch.sigmoid(torch.from_numpy(logits)).numpy()

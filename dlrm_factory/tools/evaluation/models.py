"""The model to evaluate: a checkpoint as it was trained, or an archive as it is served."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch

from dlrm_factory.config.declaration import DLRMDeclaration
from dlrm_factory.errors import WeightsError
from dlrm_factory.factory import DLRMFactory
from dlrm_factory.features import Vocabularies
from dlrm_factory.scorer import Scorer
from dlrm_factory.tools.archive.reading import unpacked_weights
from dlrm_factory.tools.metrics.history import Evaluation as HistoryPoint
from dlrm_factory.tools.metrics.history import read_history
from dlrm_factory.tools.training.threads import fitting_threads
from dlrm_factory.weights.checkpoint import open_checkpoint
from dlrm_factory.weights.held_out import HELD_OUT_FILE, HeldOut, read_held_out
from dlrm_factory.weights.sealed import SealedWeights
from dlrm_factory.weights.seen_ids import SeenIds, read_seen_ids

__all__ = ["EvaluatedModel", "open_model"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluatedModel:
    """A model, ready to score.

    Fields:
        detail: how it is scored, as people read it.
        vocabularies: of its ids; None if it has none.
        held_out: the samples that travel with it; None if there are none.
        seen_ids: record of the ids that its training saw; None if it has none.
        metadata: what training reported, as text.
    """

    path: Path
    scorer: Scorer
    detail: str
    vocabularies: Vocabularies | None
    held_out: HeldOut | None
    seen_ids: SeenIds | None
    metadata: Mapping[str, str]

    @property
    def declaration(self) -> DLRMDeclaration:
        """Declaration with every mean and std that training found."""
        return self.scorer.declaration

    @property
    def generated_rows(self) -> int | None:
        """Number of generated clicks that the model was trained on, held-out ones included; None if they were real.

        Only generated clicks have a best reachable log-loss.
        """
        rows = self.metadata.get("rows", "")
        return int(rows) if "best_log_loss" in self.metadata and rows.isdecimal() else None

    def history(self) -> tuple[HistoryPoint, ...]:
        """The evaluations during training, in order; empty if it carries none. WeightsError if they are unreadable."""
        text = self.metadata.get("history")
        if text is None:
            return ()
        try:
            return tuple(read_history(text))
        except msgspec.MsgspecError as error:
            raise WeightsError(f"{self.path}: its training history cannot be read: {error}") from None


@contextlib.contextmanager
def open_model(path: Path) -> Iterator[EvaluatedModel]:
    """The model at ``path``, a checkpoint, a ``.mar``, or a folder of an archive or of sealed weights.

    WeightsError or ArchiveError if it is none of them, or damaged.
    """
    if path.suffix == ".safetensors":
        yield _checkpoint(path)
    elif path.is_dir() or path.suffix == ".mar":
        with unpacked_weights(path) as folder:
            yield _archive(path, folder)
    else:
        raise WeightsError(
            f"{path}: neither a checkpoint (.safetensors) nor an archive (.mar, or a folder); "
            "make one with `dlrm train` or `dlrm archive`"
        )


def _checkpoint(path: Path) -> EvaluatedModel:
    checkpoint = open_checkpoint(path)
    torch.set_num_threads(fitting_threads(checkpoint.declaration, torch.get_num_threads()))
    if checkpoint.held_out is not None:
        checkpoint.held_out.check(checkpoint.declaration, str(path))
    built = DLRMFactory(checkpoint.declaration).build(mode="float", weights=checkpoint)
    return EvaluatedModel(
        path=path,
        scorer=Scorer(built, vocabularies=checkpoint.vocabularies),
        detail="as trained, fp32",
        vocabularies=checkpoint.vocabularies,
        held_out=checkpoint.held_out,
        seen_ids=checkpoint.seen_ids,
        metadata=checkpoint.metadata,
    )


def _archive(path: Path, folder: Path) -> EvaluatedModel:
    sealed = SealedWeights(folder)
    # As a worker does: packages are compiled for a number of threads.
    torch.set_num_threads(sealed.declaration.serving.threads)
    scorer = Scorer.load(folder)
    if sealed.declaration.serving.compile != "off":
        scorer.compile(folder)
    held_out = read_held_out(folder)
    if held_out is not None:
        held_out.check(sealed.declaration, str(folder / HELD_OUT_FILE))
    precision = scorer.precision if scorer.engine == "compiled" else "fp32"
    tables = ", ".join(sorted({table.dtype for table in sealed.declaration.tables}))
    return EvaluatedModel(
        path=path,
        scorer=scorer,
        detail=f"as served: tables {tables}; dense parts {scorer.engine}, {precision}",
        vocabularies=sealed.vocabularies,
        held_out=held_out,
        seen_ids=read_seen_ids(folder, sealed.declaration),
        metadata=sealed.seal.training,
    )

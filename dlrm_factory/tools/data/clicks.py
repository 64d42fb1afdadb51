"""Where the samples come from: the user's files, or the ground truth."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dlrm_factory.config.declaration import DLRMDeclaration
from dlrm_factory.features import Vocabularies
from dlrm_factory.features.vocabulary_rows import VocabularyRows
from dlrm_factory.tools.data.bad_rows import BadRows
from dlrm_factory.tools.data.click_files import Chunk
from dlrm_factory.tools.data.click_source import ClickSource
from dlrm_factory.tools.data.dataset import ClickDataset, Int64
from dlrm_factory.tools.data.dataset_building import BuiltDataset, DatasetBuilder
from dlrm_factory.tools.data.encoding import encode_chunk
from dlrm_factory.tools.data.file_format import FileFormat
from dlrm_factory.tools.data.fit import FittedFeatures, fit_features, needs_fitting
from dlrm_factory.tools.data.generate import GeneratedChunk, default_rows, generate
from dlrm_factory.tools.data.memory import memory_for_rows
from dlrm_factory.tools.data.progress import Observer, Progress
from dlrm_factory.tools.data.sides import HashSplit, SidedChunk, sided
from dlrm_factory.tools.data.unreadable_cells import CellLedger, UnreadableCells
from dlrm_factory.tools.data.write_clicks import click_writer

__all__ = ["Clicks", "generate_clicks", "read_clicks"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Clicks:
    """Samples, and what was found in them.

    Fields:
        training, validation, held_out: row numbers into the dataset, int64, ascending.
        features: the declaration and vocabularies they are encoded by.
        bad_rows: what was left out; None if no row may be.
        unreadable: cells that count as missing, of rows that were not left out.
        true_logits: the ground truth's, float64 [N]; None if the clicks are real.
    """

    dataset: ClickDataset
    training: Int64
    validation: Int64
    held_out: Int64
    features: FittedFeatures
    bad_rows: BadRows | None = None
    unreadable: tuple[UnreadableCells, ...] = ()
    true_logits: npt.NDArray[np.float64] | None = None


def read_clicks(
    declaration: DLRMDeclaration,
    paths: Sequence[Path],
    *,
    held_out: Sequence[Path] = (),
    rows: int | None,
    scratch: Path | None = None,
    file_format: FileFormat = "auto",
    vocabularies: Vocabularies | None = None,
    observe: Observer,
) -> Clicks:
    """The samples of ``paths``, at most ``rows`` of them, and all of ``held_out``.

    Args:
        paths, held_out: files, or folders of them. With ``held_out`` all of ``paths`` trains, and there may be
            none; else the declaration says how ``paths`` is split.
        scratch: a folder for the encoded rows; None: memory as long as there is enough.
        vocabularies: of a trained model; then its declaration has every mean and std, and nothing is fitted.

    Raises:
        DataError: the first mistake, or too many bad rows, or a full disk.
    """
    source = ClickSource(declaration, paths, held_out=held_out, rows=rows, file_format=file_format)
    split = source.split(observe)
    if vocabularies is not None or not needs_fitting(declaration):
        features = FittedFeatures(declaration=declaration, vocabularies=vocabularies)
    else:
        ledger = source.ledger()
        chunks = sided(source.chunks(), split, ledger)
        features = fit_features(declaration, chunks, rows=source.most_rows, observe=observe)
        ledger.close()
    ledger = source.ledger()
    chunks = sided(source.chunks(), split, ledger)
    builder = DatasetBuilder(declaration, scratch=scratch, most_bytes=memory_for_rows())
    cells = CellLedger()
    built = _encoded(features, chunks, builder, observe, source.most_rows, cells)
    return _clicks(built, features, bad_rows=ledger.close(), unreadable=cells.close())


def generate_clicks(
    declaration: DLRMDeclaration, *, rows: int | None, write_to: Path | None, observe: Observer
) -> Clicks:
    """``rows`` samples of the ground truth (None: enough to learn it), also written to a file if asked."""
    rows = rows or default_rows(declaration)
    options = declaration.training
    logits: list[npt.NDArray[np.float64]] = []
    split = HashSplit.of(options)
    raw = (generated.chunk for generated in generate(declaration, rows, options.seed))
    features = fit_features(declaration, sided(raw, split), rows=rows, observe=observe)

    def kept(generated: GeneratedChunk) -> Chunk:
        logits.append(generated.logits)
        if writer is not None:
            writer.write(generated.chunk.columns)
        return generated.chunk

    with ExitStack() as stack:
        writer = None if write_to is None else stack.enter_context(click_writer(write_to, options.separator))
        chunks = sided(map(kept, generate(declaration, rows, options.seed)), split)
        builder = DatasetBuilder(declaration, most_bytes=memory_for_rows())
        built = _encoded(features, chunks, builder, observe, rows, CellLedger())
    return _clicks(built, features, true_logits=np.concatenate(logits))


def _encoded(
    features: FittedFeatures,
    chunks: Iterator[SidedChunk],
    builder: DatasetBuilder,
    observe: Observer,
    total: int | None,
    cells: CellLedger,
) -> BuiltDataset:
    declaration, vocabulary = features.declaration, None
    if declaration.vocabulary_tables:
        vocabulary = VocabularyRows(declaration, features.vocabularies)
    done = 0
    with closing(builder):
        for piece in chunks:
            encoded = encode_chunk(piece.chunk, declaration, vocabulary, wrong=piece.wrong)
            sides = piece.sides
            done += len(encoded.labels)
            good = np.ones(len(encoded.labels), dtype=np.bool_) if piece.wrong is None else ~piece.wrong.mask
            cells.add(encoded.unreadable, good)
            if not good.all():
                encoded, sides = encoded.take(good), sides.take(good)
            builder.add(encoded, sides)
            observe(Progress(stage="data", done=done, total=total))
        return builder.finish()


def _clicks(
    built: BuiltDataset,
    features: FittedFeatures,
    *,
    bad_rows: BadRows | None = None,
    unreadable: tuple[UnreadableCells, ...] = (),
    true_logits: npt.NDArray[np.float64] | None = None,
) -> Clicks:
    return Clicks(
        dataset=built.dataset,
        training=built.training,
        validation=built.validation,
        held_out=built.held_out,
        features=features,
        bad_rows=bad_rows,
        unreadable=unreadable,
        true_logits=true_logits,
    )

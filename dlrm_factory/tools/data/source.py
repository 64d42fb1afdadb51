"""Samples of a run, from the user's files or from the ground truth: read, split, encoded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dlrm_factory.config.declaration import DLRMDeclaration
from dlrm_factory.errors import DataError
from dlrm_factory.features import Vocabularies
from dlrm_factory.features.vocabulary_rows import VocabularyRows
from dlrm_factory.tools.data.bad_rows import BadRowLedger, BadRows, CellLedger, UnreadableCells
from dlrm_factory.tools.data.dataset import ClickDataset, Int64
from dlrm_factory.tools.data.dataset_builder import BuiltDataset, DatasetBuilder, memory_for_rows
from dlrm_factory.tools.data.encoding import encode_chunk
from dlrm_factory.tools.data.files import Chunk, ClickFiles, FileFormat, declared_columns
from dlrm_factory.tools.data.fitting import FittedFeatures, fit_features, needs_fitting
from dlrm_factory.tools.data.progress import Observer, Progress
from dlrm_factory.tools.data.seen_bags import SeenIdsRecorder
from dlrm_factory.tools.data.split import (
    FileSplit,
    HashSplit,
    Split,
    SplitChunk,
    find_time_split,
    first_rows,
    split_chunks,
)
from dlrm_factory.tools.data.synthetic import GeneratedChunk, default_rows, generate
from dlrm_factory.tools.data.writing import click_writer
from dlrm_factory.weights.seen_ids import SeenIds

__all__ = ["ClickSource", "Clicks", "generate_clicks", "read_clicks"]


class ClickSource:
    """Rows of some files, and after them those of files that are held out.

    Fields:
        max_rows: upper bound of the number of rows; None if that takes reading them.
    """

    def __init__(
        self,
        declaration: DLRMDeclaration,
        paths: Sequence[Path],
        *,
        held_out: Sequence[Path],
        rows: int | None,
        file_format: FileFormat,
        columns: Sequence[str] = (),
    ) -> None:
        """``columns``: wanted beside those that training needs.

        DataError for a file that cannot be read, lacks a column, or is given both to train on and to hold out.
        """
        self._options = declaration.training
        self._files = ClickFiles(paths, file_format)
        self._held_out = ClickFiles(held_out, file_format)
        self._rows = rows
        both = {path.resolve() for path in self._files.paths} & {
            path.resolve() for path in self._held_out.paths
        }
        if both:
            raise DataError(f"{min(both)}: is given both to train on and to hold out")
        self._columns = [*declared_columns(declaration), *columns]
        time = self._options.time_column
        self._by_time = time if self._options.split == "time" and not held_out else None
        if self._by_time is not None:
            self._columns.append(self._by_time)
        for files in (self._files, self._held_out):
            files.check_columns(self._columns)
        self.max_rows = self._max_rows()

    def chunks(self) -> Iterator[Chunk]:
        """All rows, with the columns that are needed."""
        training = first_rows(self._files.chunks(self._columns), self._rows)
        return chain(training, self._held_out.chunks(self._columns))

    def ledger(self) -> BadRowLedger:
        """Ledger for the bad rows of one pass over `chunks`."""
        return BadRowLedger(self._options.max_bad_rows, self.max_rows)

    def split(self, observe: Observer) -> Split:
        """Declared split; one by time takes a pass over that column. DataError if it cannot be found."""
        if self._held_out.paths:
            return FileSplit(
                sources=frozenset(map(str, self._held_out.paths)),
                validation=self._options.validation_share,
                seed=self._options.seed,
            )
        if self._by_time is None:
            return HashSplit.of(self._options)
        chunks = first_rows(self._files.chunks([self._by_time]), self._rows)
        return find_time_split(
            self._observed(chunks, observe),
            self._by_time,
            holdout=self._options.holdout,
            validation=self._options.validation_share,
            ledger=self.ledger(),
        )

    def _observed(self, chunks: Iterator[Chunk], observe: Observer) -> Iterator[Chunk]:
        done = 0
        for chunk in chunks:
            yield chunk
            done += chunk.columns.num_rows
            observe(Progress(stage="split", done=done, total=self.max_rows))

    def _max_rows(self) -> int | None:
        training, held_out = self._files.rows(), self._held_out.rows()
        if self._rows is not None:
            training = self._rows if training is None else min(training, self._rows)
        return None if training is None or held_out is None else training + held_out


@dataclass(frozen=True, slots=True, kw_only=True)
class Clicks:
    """Samples, and what was found in them.

    Fields:
        training, validation, held_out: row numbers into the dataset, int64, ascending.
        features: the declaration and vocabularies they are encoded by.
        bad_rows: what was left out; None if no row may be.
        unreadable: cells that count as missing, of rows that were not left out.
        true_logits: the ground truth's, float64 [N, probabilities]; None if the clicks are real.
        seen_ids: record of the ids of the rows that train.
        held_out_seen: uint8 [first held-out rows, F], what that record says of theirs; see `seen_bags.group_samples`.
    """

    dataset: ClickDataset
    training: Int64
    validation: Int64
    held_out: Int64
    features: FittedFeatures
    seen_ids: SeenIds
    held_out_seen: npt.NDArray[np.uint8]
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
        chunks = split_chunks(source.chunks(), split, ledger)
        features = fit_features(declaration, chunks, rows=source.max_rows, observe=observe)
        ledger.close()
    ledger = source.ledger()
    chunks = split_chunks(source.chunks(), split, ledger)
    builder = DatasetBuilder(declaration, scratch=scratch, max_bytes=memory_for_rows())
    cells, recorder = CellLedger(), SeenIdsRecorder(declaration)
    built = _encoded(features, chunks, builder, observe, source.max_rows, cells, recorder)
    return _clicks(built, features, recorder, bad_rows=ledger.close(), unreadable=cells.close())


def generate_clicks(
    declaration: DLRMDeclaration, *, rows: int | None, write_to: Path | None, observe: Observer
) -> Clicks:
    """``rows`` samples of the ground truth (None: enough to learn it), also written to a file if asked."""
    rows = rows or default_rows(declaration)
    options = declaration.training
    logits: list[npt.NDArray[np.float64]] = []
    split = HashSplit.of(options)
    raw = (generated.chunk for generated in generate(declaration, rows, options.seed))
    features = fit_features(declaration, split_chunks(raw, split), rows=rows, observe=observe)

    def kept(generated: GeneratedChunk) -> Chunk:
        logits.append(generated.logits)
        if writer is not None:
            writer.write(generated.chunk.columns)
        return generated.chunk

    with ExitStack() as stack:
        writer = None if write_to is None else stack.enter_context(click_writer(write_to, options.separator))
        chunks = split_chunks(map(kept, generate(declaration, rows, options.seed)), split)
        builder = DatasetBuilder(declaration, max_bytes=memory_for_rows())
        recorder = SeenIdsRecorder(declaration)
        built = _encoded(features, chunks, builder, observe, rows, CellLedger(), recorder)
    return _clicks(built, features, recorder, true_logits=np.concatenate(logits))


def _encoded(
    features: FittedFeatures,
    chunks: Iterator[SplitChunk],
    builder: DatasetBuilder,
    observe: Observer,
    total: int | None,
    cells: CellLedger,
    recorder: SeenIdsRecorder,
) -> BuiltDataset:
    declaration, vocabulary = features.declaration, None
    if declaration.vocabulary_tables:
        vocabulary = VocabularyRows(declaration, features.vocabularies)
    done = 0
    with closing(builder):
        for piece in chunks:
            encoded = encode_chunk(piece.chunk, declaration, vocabulary, wrong=piece.wrong)
            masks = piece.masks
            done += len(encoded.labels)
            good = np.ones(len(encoded.labels), dtype=np.bool_) if piece.wrong is None else ~piece.wrong.mask
            cells.add(encoded.unreadable, good)
            if not good.all():
                encoded, masks = encoded.take(good), masks.take(good)
            builder.add(encoded, masks)
            recorder.add(encoded, masks)
            observe(Progress(stage="data", done=done, total=total))
        return builder.finish()


def _clicks(
    built: BuiltDataset,
    features: FittedFeatures,
    recorder: SeenIdsRecorder,
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
        seen_ids=recorder.seen,
        held_out_seen=recorder.held_out_groups(),
        bad_rows=bad_rows,
        unreadable=unreadable,
        true_logits=true_logits,
    )

"""Samples that a model is evaluated on: of files, generated anew, or held out with the model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dlrm_factory.batch import FeatureBatch
from dlrm_factory.config.declaration import DLRMDeclaration
from dlrm_factory.errors import DataError, near_matches
from dlrm_factory.features import Vocabularies
from dlrm_factory.features.vocabulary_rows import VocabularyRows
from dlrm_factory.tools.data.bad_rows import CellLedger, UnreadableCells
from dlrm_factory.tools.data.dataset import slices
from dlrm_factory.tools.data.dataset_builder import dataset_of
from dlrm_factory.tools.data.encoding import EncodedChunk, encode_chunk
from dlrm_factory.tools.data.files import FileFormat, declared_columns
from dlrm_factory.tools.data.labels import label_codes
from dlrm_factory.tools.data.progress import Observer
from dlrm_factory.tools.data.seen_bags import group_samples
from dlrm_factory.tools.data.source import (
    Clicks,
    ClickSource,
    generate_clicks,
    read_clicks,
)
from dlrm_factory.tools.data.split import HashSplit, SplitChunk, split_chunks
from dlrm_factory.tools.data.synthetic import generate
from dlrm_factory.tools.evaluation.groups import groups_of_batch
from dlrm_factory.tools.evaluation.models import EvaluatedModel
from dlrm_factory.weights.held_out import HeldOut
from dlrm_factory.weights.seen_ids import SeenIds

__all__ = [
    "EvaluationSource",
    "Samples",
    "samples_of",
]

_SAMPLES = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """B samples.

    Fields:
        labels: uint8 [B, probabilities] of 0 and 1; 2 where a sample does not count for one.
        true_logits: the ground truth's, float64 [B, probabilities]; None for real clicks.
        seen: uint8 [B, F], which of the ids training saw, see `seen_bags.group_samples`; None if that is not known.
        column: the raw column that samples are cut by, B long; None without one.
        groups: the raw column of ``training.group_column``, B long; None without one, or if it is not there.
    """

    batch: FeatureBatch
    labels: npt.NDArray[np.uint8]
    seen: npt.NDArray[np.uint8] | None = None
    true_logits: npt.NDArray[np.float64] | None = None
    column: pa.Array | None = None
    groups: pa.Array | None = None


class Encoder:
    """Encodes rows as a model's training did.

    Fields:
        cells: counts the unreadable ones of the latest `blocks`.
    """

    def __init__(
        self,
        declaration: DLRMDeclaration,
        vocabularies: Vocabularies | None,
        seen_ids: SeenIds | None = None,
    ) -> None:
        self._declaration = declaration
        self._seen_ids = seen_ids
        self.cells = CellLedger()
        self._vocabulary = None if vocabularies is None else VocabularyRows(declaration, vocabularies)

    def blocks(
        self,
        chunks: Iterable[tuple[SplitChunk, npt.NDArray[np.float64] | None]],
        *,
        all_rows: bool,
        column: str | None,
    ) -> Iterator[Block]:
        """Blocks of some thousand samples, held-out rows or all, in order; rows recorded as wrong are left out.

        ``chunks``: with the ground truth's logits, float64 [n, probabilities], where there is one. DataError for a
        wrong value.
        """
        group = self._declaration.training.group_column
        self.cells = CellLedger()
        for chunk, truth in chunks:
            encoded = encode_chunk(chunk.chunk, self._declaration, self._vocabulary, wrong=chunk.wrong)
            kept = np.ones(len(encoded.labels), dtype=np.bool_) if all_rows else chunk.masks.held_out.copy()
            if chunk.wrong is not None:
                kept &= ~chunk.wrong.mask
            self.cells.add(encoded.unreadable, kept)
            raw = chunk.chunk.columns
            cells, groups = (
                raw[name].filter(pa.array(kept)) if name is not None and name in raw.schema.names else None
                for name in (column, group)
            )
            yield from self._pieces(encoded.take(kept), None if truth is None else truth[kept], cells, groups)

    def _pieces(
        self,
        encoded: EncodedChunk,
        truth: npt.NDArray[np.float64] | None,
        cells: pa.Array | None,
        groups: pa.Array | None,
    ) -> Iterator[Block]:
        dataset = dataset_of([encoded], self._declaration)
        seen = None if self._seen_ids is None else group_samples(self._seen_ids, encoded.bags)
        for rows in slices(np.arange(len(dataset)), _SAMPLES):
            first, count = int(rows[0]), len(rows)
            yield Block(
                batch=dataset.features(rows),
                labels=label_codes(dataset.labels[rows]),
                seen=None if seen is None else seen[rows],
                true_logits=None if truth is None else truth[first : first + count],
                column=None if cells is None else cells.slice(first, count),
                groups=None if groups is None else groups.slice(first, count),
            )


def chunks_of_files(
    declaration: DLRMDeclaration,
    data: Sequence[Path],
    held_out: Sequence[Path],
    *,
    rows: int | None,
    file_format: FileFormat,
    column: str | None,
    observe: Observer,
) -> Iterator[SplitChunk]:
    """The rows of ``data``; if there are files of ``held_out`` rows, only theirs: the others need not be read.

    ``column``: one to read beside those that the model needs and the declared group_column. DataError for the first
    mistake; for too many, where the declaration allows some.
    """
    wanted = (column, declaration.training.group_column)
    source = ClickSource(
        declaration,
        () if held_out else data,
        held_out=held_out,
        rows=rows,
        file_format=file_format,
        columns=[name for name in wanted if name is not None],
    )
    split = source.split(observe)
    ledger = source.ledger()
    yield from split_chunks(source.chunks(), split, ledger)
    ledger.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationSource:
    """Source of the samples to evaluate.

    Fields:
        data: files, split as the model's declaration says. None, and no ``held_out``: what travels with the model.
        held_out: files of held-out rows, all evaluated; then all of ``data`` are training rows.
        all_rows: evaluate the training rows too.
        rows: the most rows to read of ``data``; None: all.
        scratch, file_format: as for `dlrm train`.
        column: a column to cut the samples by.
    """

    data: Sequence[Path] = ()
    held_out: Sequence[Path] = ()
    all_rows: bool = False
    rows: int | None = None
    scratch: Path | None = None
    file_format: FileFormat = "auto"
    column: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """Samples, read from the beginning each time they are asked for.

    Fields:
        description: which they are, as people read it.
        blocks: all of them, in the same order each time.
        clicks: all rows of the data, in memory or mapped: for the training rows. DataError if there is no data.
        unreadable: cells that counted as missing in the samples that `blocks` gave last.
    """

    description: str
    blocks: Callable[[], Iterator[Block]]
    clicks: Callable[[], Clicks]
    unreadable: Callable[[], tuple[UnreadableCells, ...]] = tuple


def samples_of(model: EvaluatedModel, source: EvaluationSource, observe: Observer) -> Samples:
    """The samples that ``source`` names, for ``model``. DataError if what is asked for needs data."""
    if source.data or source.held_out:
        return _of_files(model, source, observe)
    if source.rows is not None:
        raise DataError("--rows needs the data; name its files with --data")
    if model.generated_rows is not None and _come_out_again(model):
        return _of_generated(model, source, observe)
    return _of_held_out(model, source)


def _of_files(model: EvaluatedModel, source: EvaluationSource, observe: Observer) -> Samples:
    encoder = Encoder(model.declaration, model.vocabularies, model.seen_ids)
    all_rows = source.all_rows or bool(source.held_out)
    names = ", ".join(str(path) for path in source.held_out or source.data)

    def blocks() -> Iterator[Block]:
        chunks = chunks_of_files(
            model.declaration,
            source.data,
            source.held_out,
            rows=source.rows,
            file_format=source.file_format,
            column=source.column,
            observe=observe,
        )
        return encoder.blocks(((chunk, None) for chunk in chunks), all_rows=all_rows, column=source.column)

    def clicks() -> Clicks:
        return read_clicks(
            model.declaration,
            source.data,
            held_out=source.held_out,
            rows=source.rows,
            scratch=source.scratch,
            file_format=source.file_format,
            vocabularies=model.vocabularies,
            observe=observe,
        )

    what = "all rows" if all_rows else "the held-out rows"
    return Samples(
        description=f"{what} of {names}",
        blocks=blocks,
        clicks=clicks,
        unreadable=lambda: encoder.cells.close(),
    )


def _of_generated(model: EvaluatedModel, source: EvaluationSource, observe: Observer) -> Samples:
    encoder = Encoder(model.declaration, model.vocabularies, model.seen_ids)
    rows = model.generated_rows
    assert rows is not None
    columns = declared_columns(model.declaration)
    if source.column is not None and source.column not in columns:
        raise DataError(
            f'there is no column "{source.column}"{near_matches(source.column, columns)}; generated clicks have '
            f"{', '.join(columns)}"
        )

    def blocks() -> Iterator[Block]:
        return encoder.blocks(_generated(model, rows), all_rows=source.all_rows, column=source.column)

    def clicks() -> Clicks:
        return generate_clicks(model.declaration, rows=rows, write_to=None, observe=observe)

    what = "all rows" if source.all_rows else "the held-out rows"
    return Samples(
        description=f"{what} of the {rows:,} generated clicks of its training, generated again",
        blocks=blocks,
        clicks=clicks,
    )


def _generated(model: EvaluatedModel, rows: int) -> Iterator[tuple[SplitChunk, np.ndarray]]:
    options = model.declaration.training
    split, first = HashSplit.of(options), 0
    for generated in generate(model.declaration, rows, options.seed):
        masks = split.masks(generated.chunk, first, None)
        yield SplitChunk(chunk=generated.chunk, masks=masks), generated.logits
        first += generated.chunk.columns.num_rows


def _come_out_again(model: EvaluatedModel) -> bool:
    """True if the clicks generated today are those of the training, as far as the model's own samples tell.

    Another version of this project may generate others.
    """
    sample, rows = model.held_out, model.generated_rows
    if sample is None or rows is None:
        return False
    encoder = Encoder(model.declaration, model.vocabularies)
    done = 0
    for block in encoder.blocks(_generated(model, rows), all_rows=False, column=None):
        if not _is_part(sample, done, block):
            return False
        done += len(block.labels)
        if done >= len(sample.labels):
            return True
    return done == len(sample.labels)


def _is_part(sample: HeldOut, first: int, block: Block) -> bool:
    """True if ``block`` is what ``sample`` holds from place ``first`` on."""
    here = slice(first, first + len(block.labels))
    count = len(sample.labels[here])
    return (
        np.array_equal(sample.labels[here], block.labels[:count])
        and np.array_equal(sample.batch.lengths[:, here], block.batch.lengths[:, :count])
        and np.array_equal(sample.batch.dense[here], block.batch.dense[:count])
    )


def _of_held_out(model: EvaluatedModel, source: EvaluationSource) -> Samples:
    """The samples that travel with the model."""
    for wanted, option in ((source.column is not None, "--slice"), (source.all_rows, "--all-rows")):
        if wanted:
            raise DataError(f"{option} needs the data; name its files with --data")
    sample = model.held_out
    if sample is None or not len(sample.labels):
        raise DataError(f"{model.path}: no held-out samples travel with it; name files with --data")

    def clicks() -> Clicks:
        raise DataError("--baseline needs the data that the model was trained on; name its files with --data")

    block = Block(
        batch=sample.batch,
        labels=sample.labels,
        seen=sample.seen,
        groups=groups_of_batch(sample.batch, model.declaration),
    )
    return Samples(
        description=f"the {len(sample.labels):,} held-out samples that travel with the model",
        blocks=lambda: iter([block]),
        clicks=clicks,
    )

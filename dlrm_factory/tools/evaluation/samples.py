"""Which samples a model is evaluated on, and where they come from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dlrm_factory.errors import DataError, near_matches
from dlrm_factory.tools.data.bad_rows import UnreadableCells
from dlrm_factory.tools.data.files import FileFormat, declared_columns
from dlrm_factory.tools.data.progress import Observer
from dlrm_factory.tools.data.source import Clicks, generate_clicks, read_clicks
from dlrm_factory.tools.data.split import HashSplit, SplitChunk
from dlrm_factory.tools.data.synthetic import generate
from dlrm_factory.tools.evaluation.blocks import Block, Encoder
from dlrm_factory.tools.evaluation.file_rows import chunks_of_files
from dlrm_factory.tools.evaluation.models import EvaluatedModel
from dlrm_factory.weights.held_out import HeldOut

__all__ = ["Samples", "Source", "samples_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where samples come from, and which of them.

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


def samples_of(model: EvaluatedModel, source: Source, observe: Observer) -> Samples:
    """The samples that ``source`` names, for ``model``. DataError if what is asked for needs data."""
    if source.data or source.held_out:
        return _of_files(model, source, observe)
    if source.rows is not None:
        raise DataError("--rows needs the data; name its files with --data")
    if model.generated_rows is not None and _come_out_again(model):
        return _of_generated(model, source, observe)
    return _of_held_out(model, source)


def _of_files(model: EvaluatedModel, source: Source, observe: Observer) -> Samples:
    encoder = Encoder(model.declaration, model.vocabularies)
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


def _of_generated(model: EvaluatedModel, source: Source, observe: Observer) -> Samples:
    encoder = Encoder(model.declaration, model.vocabularies)
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
    """Whether the clicks generated today are those of the training, as far as the model's own samples tell.

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
    """Whether ``block`` is what ``sample`` holds from place ``first`` on."""
    here = slice(first, first + len(block.labels))
    count = len(sample.labels[here])
    return (
        np.array_equal(sample.labels[here], block.labels[:count])
        and np.array_equal(sample.batch.lengths[:, here], block.batch.lengths[:, :count])
        and np.array_equal(sample.batch.dense[here], block.batch.dense[:count])
    )


def _of_held_out(model: EvaluatedModel, source: Source) -> Samples:
    """The samples that travel with the model."""
    for wanted, option in ((source.column is not None, "--slice"), (source.all_rows, "--all-rows")):
        if wanted:
            raise DataError(f"{option} needs the data; name its files with --data")
    sample = model.held_out
    if sample is None or not len(sample.labels):
        raise DataError(f"{model.path}: no held-out samples travel with it; name files with --data")

    def clicks() -> Clicks:
        raise DataError("--baseline needs the data that the model was trained on; name its files with --data")

    return Samples(
        description=f"the {len(sample.labels):,} held-out samples that travel with the model",
        blocks=lambda: iter([Block(batch=sample.batch, labels=sample.labels)]),
        clicks=clicks,
    )

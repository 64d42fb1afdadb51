"""`import_weights`: open → match → convert → save."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from pathlib import Path

import msgspec
import torch

from dlrm_factory.config.declaration import DLRMDeclaration
from dlrm_factory.config.reading import dump_declaration
from dlrm_factory.errors import WeightsError, near_matches
from dlrm_factory.features import Vocabularies, build_vocabularies
from dlrm_factory.tools.importing.deriving import derive_declaration
from dlrm_factory.tools.importing.dlrm_s_pytorch import FIRST_TOP_LAYER, interaction_columns
from dlrm_factory.tools.importing.matching import Matched, match, name_weights
from dlrm_factory.tools.importing.opening import SourceFormat, open_source
from dlrm_factory.tools.importing.weights import Scratch, SourceWeight, float_tensor, own_copy
from dlrm_factory.weights.checkpoint import save_checkpoint

__all__ = [
    "ImportReport",
    "first_declaration",
    "first_declaration_text",
    "import_weights",
]

Progress = Callable[[int, int], None]
_LOOK_OVER = """\
# A first declaration, from the shapes of {source}. Look over:
# - the order of the tables: it must be that in which the model was built, or every score is wrong
# - the names of the features, and how they are prepared (ids, transform, default)
# - pooling, and features that share a table, which the weights do not tell
"""


def read_vocabularies(files: Mapping[str, Path], declaration: DLRMDeclaration) -> Vocabularies | None:
    """The vocabularies of all tables with ``ids: vocabulary``; None if there are none.

    WeightsError if a table's file is missing or not wanted, or a line is empty, there twice, or one too many.
    """
    wanted = declaration.vocabulary_tables
    for table in files:
        if table not in wanted:
            raise WeightsError(
                f'--vocabulary {table}: no feature with ids: vocabulary uses a table "{table}"'
                f"{near_matches(table, wanted)}"
            )
    missing = [table for table in wanted if table not in files]
    if missing:
        options = " ".join(f"--vocabulary {table}=FILE" for table in missing)
        raise WeightsError(
            f"{', '.join(missing)}: ids: vocabulary needs the ids of the rows; give {options}, "
            "a text file with one id a line, row 0 first"
        )
    if not wanted:
        return None
    return build_vocabularies({table: _ids(files[table], table, declaration) for table in wanted})


def _ids(path: Path, table: str, declaration: DLRMDeclaration) -> list[str]:
    room = declaration.vocabulary_room(table)
    ids: list[str] = []
    seen: dict[str, int] = {}
    try:
        with path.open(encoding="utf-8", newline="\n") as file:
            for number, line in enumerate(file, start=1):
                text = line.rstrip("\n").removesuffix("\r")
                if not text:
                    raise WeightsError(
                        f"{path}: line {number} is empty; each line is the id of a row of {table}"
                    )
                if seen.setdefault(text, number) != number:
                    raise WeightsError(
                        f'{path}: line {number}: "{text}" is also line {seen[text]}; an id has one row'
                    )
                if number > room:
                    raise WeightsError(
                        f"{path}: has more than {room} ids, but {table} has {declaration.table(table).num_embeddings} "
                        f"rows and out_of_vocabulary takes {declaration.table(table).num_embeddings - room}"
                    )
                ids.append(text)
    except (OSError, UnicodeDecodeError) as error:
        raise WeightsError(f"{path}: cannot be read as UTF-8 text: {error}") from None
    return ids


class ImportReport(msgspec.Struct, frozen=True, kw_only=True):
    """Summary of an import.

    Fields:
        source: the kind of file or folder.
        naming: whose names the weights have: ``torchrec``, ``dlrm_s_pytorch``, ``snapshot``, or by the declared
            ``prefixes``.
        weights, tables: how many.
        parameters: numbers in all of them.
        ignored: names in the source that are not the model's, such as optimiser state.
        notes: what a user should know.
    """

    source: str
    naming: str
    weights: int
    tables: int
    parameters: int
    ignored: list[str]
    notes: list[str]


def import_weights(
    paths: Sequence[Path],
    declaration: DLRMDeclaration,
    output: Path,
    *,
    source_format: SourceFormat = "auto",
    vocabularies: Mapping[str, Path] | None = None,
    progress: Progress = lambda done, total: None,
) -> ImportReport:
    """Write the checkpoint ``output`` with the declared model's weights out of ``paths``, all or nothing.

    Args:
        paths: a file, the files of all ranks, or a folder.
        declaration: the model, its tables in the order in which it was built.
        output: the safetensors file to write.
        source_format: the kind of ``paths``; auto looks at them.
        vocabularies: by table, a text file with one id a line, in the order of the rows.
        progress: called with bytes done and in all.

    Raises:
        WeightsError: something cannot be loaded safely, is damaged, or does not fit; all that does not is listed.
    """
    _check_output(paths, output)
    _check_statistics(declaration)
    read = read_vocabularies(vocabularies or {}, declaration)
    with Scratch(output.parent) as scratch:
        source = open_source(paths, source_format, scratch)
        matched = match(source, declaration, source_format)
        sizes = [prod(weight.shape) for weight in matched.weights.values()]
        state = _state(matched, declaration, scratch, progress, 4 * sum(sizes))
        try:
            metadata = {"imported": f"{matched.naming}, {source.kind}"}
            save_checkpoint(output, declaration, state, metadata, vocabularies=read, release=True)
        except OSError as error:
            raise WeightsError(f"{output}: cannot be written: {error}") from None
    return ImportReport(
        source=source.kind,
        naming=matched.naming,
        weights=len(sizes),
        tables=len(declaration.tables),
        parameters=sum(sizes),
        ignored=matched.ignored,
        notes=[*source.notes, *_notes(matched)],
    )


def first_declaration(
    paths: Sequence[Path], beside: Path, *, source_format: SourceFormat = "auto"
) -> DLRMDeclaration:
    """Derive a declaration to start from, out of the names and shapes of weights.

    Args:
        paths: a file, the files of all ranks, or a folder.
        beside: a folder on disk to work in.
        source_format: the kind of ``paths``; auto looks at them.

    Raises:
        WeightsError: the weights cannot be loaded safely, or are of no model that can be declared.
    """
    with Scratch(beside) as scratch:
        source = open_source(paths, source_format, scratch)
        return derive_declaration(name_weights(source, source_format), source.place)


def first_declaration_text(
    paths: Sequence[Path], beside: Path, *, source_format: SourceFormat = "auto"
) -> str:
    """YAML of `first_declaration`, with comments on all that the weights do not tell."""
    declaration = first_declaration(paths, beside, source_format=source_format)
    return _LOOK_OVER.format(source=", ".join(map(str, paths))) + dump_declaration(declaration)


def _state(
    matched: Matched, declaration: DLRMDeclaration, scratch: Scratch, progress: Progress, total: int
) -> dict[str, torch.Tensor]:
    done = 0

    def advance(size: int) -> None:
        nonlocal done
        done += size
        progress(done, total)

    state: dict[str, torch.Tensor] = {}
    for name, weight in matched.weights.items():
        columns = None
        if matched.naming == "dlrm_s_pytorch" and name == FIRST_TOP_LAYER:
            columns = interaction_columns(len(declaration.tables), declaration.embedding_dim)
        tensor = float_tensor(weight, scratch, columns=columns, progress=advance)
        # Two weights may be one in the source; safetensors keeps each apart.
        if any(_overlap(tensor, other) for other in state.values()):
            tensor = own_copy(tensor, scratch)
        state[name] = tensor
    return state


def _overlap(one: torch.Tensor, other: torch.Tensor) -> bool:
    """True if two contiguous tensors share memory."""
    first, second = sorted((t.data_ptr(), t.data_ptr() + 4 * t.numel()) for t in (one, other))
    return second[0] < first[1]


def _notes(matched: Matched) -> list[str]:
    notes = []
    others = [w for w in matched.weights.values() if w.dtype != torch.float32]
    if others:
        dtypes = sorted({str(weight.dtype).removeprefix("torch.") for weight in others})
        notes.append(f"{len(others)} weights were {', '.join(dtypes)} and are float32 now: {_some(others)}")
    if matched.naming == "dlrm_s_pytorch":
        notes.append(
            "dlrm_s_pytorch takes log(x + 1) of dense features before the model (transform: log1p), and a model "
            "trained with --loss-threshold clamps its probabilities, which this one does not"
        )
    return notes


def _some(weights: Sequence[SourceWeight]) -> str:
    names = [weight.name for weight in weights]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _check_output(paths: Sequence[Path], output: Path) -> None:
    if output.is_dir():
        raise WeightsError(f"{output}: is a folder; name a file")
    for path in paths:
        if path.exists() and output.exists() and path.samefile(output):
            raise WeightsError(f"{output}: is the file to import; name another output")


def _check_statistics(declaration: DLRMDeclaration) -> None:
    names = [f.name for f in declaration.dense_features if f.is_standardized and f.mean is None]
    if names:
        raise WeightsError(
            f"{', '.join(names)}: is standardised, and the weights do not say by which mean and std; "
            "declare those that the model was trained with"
        )

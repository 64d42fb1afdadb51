"""A model's sealed weights, as an archive carries them.

``declaration.yaml``, ``dense.safetensors``, ``tables.bin``, ``vocabularies.bin`` where ids have any, held-out samples
and golden requests where there are some, and ``seal.json``, which says what each of them must be.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from dlrm_factory.config.declaration import DLRMDeclaration
from dlrm_factory.config.reading import dump_declaration
from dlrm_factory.config.sizes import format_bytes
from dlrm_factory.errors import ConfigError, WeightsError
from dlrm_factory.features import FeatureEncoder, Vocabularies
from dlrm_factory.weights.held_out import HeldOut, write_held_out
from dlrm_factory.weights.rows import RowSource
from dlrm_factory.weights.seal import (
    DECLARATION_FILE,
    DENSE_FILE,
    HANDLER_FILE,
    MODULE_FOLDER,
    OPTIONAL_FILES,
    SEAL_FILE,
    TABLE_FILE,
    VOCABULARY_FILE,
    Evaluation,
    Seal,
    read_seal,
    read_sealed_declaration,
    unsealed_files,
    write_seal,
)
from dlrm_factory.weights.seen_ids import SeenIds, write_seen_ids
from dlrm_factory.weights.stamps import check_once
from dlrm_factory.weights.table_file import Progress, TableFile, write_table_file

__all__ = [
    "SealedWeights",
    "read_dense",
    "reseal",
    "seal_folder",
    "seal_weights",
]


logger = logging.getLogger(__name__)


class _Sealable(RowSource, Protocol):
    declaration: DLRMDeclaration
    vocabularies: Vocabularies | None
    held_out: HeldOut | None
    seen_ids: SeenIds | None

    def dense_state(self) -> dict[str, torch.Tensor]: ...


class SealedWeights:
    """A folder of sealed weights, opened: the declaration is read, tables and vocabularies are mapped.

    ``seal`` says what they are and how they were made.
    """

    def __init__(self, folder: Path, *, again: bool = False) -> None:
        """WeightsError if a file is missing, damaged or not of this seal.

        All files are checked, an archive's code too. Tables and vocabularies are read for that once a host;
        ``again`` reads them in any case, and keeps what it read out of this process's memory.
        """
        self.folder = folder
        self.seal = read_seal(folder)
        self.seal.check(folder)
        self.seal.check_names(folder, code_only=True)
        try:
            self.declaration = read_sealed_declaration(folder)
        except ConfigError as error:
            raise WeightsError(f"the archive's declaration is not usable: {error}") from None
        self.tables = TableFile(folder / TABLE_FILE)
        self.tables.check(self.declaration)
        self.vocabularies: Vocabularies | None = None
        if self.declaration.vocabulary_tables:
            self.vocabularies = Vocabularies.map(folder / VOCABULARY_FILE, verify=False)
            self.vocabularies.check(self.declaration)
        check_once(
            self._large_files, self.seal.xxh3, lambda: self._check_contents(release=again), again=again
        )

    @property
    def files(self) -> list[str]:
        """The names of the weights' own files; an archive's code is not among them."""
        weights = (DECLARATION_FILE, DENSE_FILE, TABLE_FILE, *OPTIONAL_FILES, *_code_of(self.declaration))
        return [*(name for name in weights if name in self.seal.files), SEAL_FILE]

    @property
    def _large_files(self) -> list[Path]:
        names = [TABLE_FILE] if self.vocabularies is None else [TABLE_FILE, VOCABULARY_FILE]
        return [self.folder / name for name in names]

    def _check_contents(self, *, release: bool) -> None:
        started = time.perf_counter()
        self.tables.verify(release=release)
        if self.vocabularies is not None:
            self.vocabularies.verify()
        size = sum(path.stat().st_size for path in self._large_files)
        seconds = time.perf_counter() - started
        logger.info("Checked %s of tables and vocabularies in %.1f s", format_bytes(size), seconds)

    def dense_state(self) -> dict[str, torch.Tensor]:
        """Every weight but the tables': float32, by state dict key."""
        return read_dense(self.folder)


def _code_of(declaration: DLRMDeclaration) -> list[str]:
    """Names, in sealed weights, of the files of code that ``declaration`` brings."""
    return (
        [] if declaration.module is None else [f"{MODULE_FOLDER}/{n}" for n in declaration.module.file_names]
    )


def read_dense(folder: Path) -> dict[str, torch.Tensor]:
    """The dense weights of the sealed weights in ``folder``. WeightsError if they cannot be read."""
    path = folder / DENSE_FILE
    try:
        return load_file(path)
    except FileNotFoundError:
        raise WeightsError(f"{path}: there is no such file of dense weights") from None
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path}: is not a safetensors file: {error}") from None


def seal_weights(
    checkpoint: _Sealable,
    folder: Path,
    *,
    progress: Progress | None = None,
    training: Mapping[str, str] | None = None,
) -> None:
    """Write the sealed weights of ``checkpoint`` into ``folder``, tables in their declared dtypes.

    ``progress(bytes_done, bytes_total)`` is called after each block of rows. ``training``: what training reported,
    for the seal. WeightsError if no request could be encoded: a vocabulary, or a feature's mean and std, is missing.
    """
    FeatureEncoder(checkpoint.declaration, checkpoint.vocabularies)
    folder.mkdir(parents=True, exist_ok=True)
    for name in OPTIONAL_FILES:  # of weights sealed here before
        (folder / name).unlink(missing_ok=True)
    (folder / DECLARATION_FILE).write_text(dump_declaration(checkpoint.declaration), encoding="utf-8")
    _write_code(checkpoint.declaration, folder)
    save_file(checkpoint.dense_state(), folder / DENSE_FILE)
    if checkpoint.vocabularies is not None:
        (folder / VOCABULARY_FILE).write_bytes(checkpoint.vocabularies.data)
    if checkpoint.held_out is not None:
        write_held_out(checkpoint.held_out, folder)
    if checkpoint.seen_ids is not None:
        write_seen_ids(checkpoint.seen_ids, folder)
    write_table_file(folder / TABLE_FILE, checkpoint.declaration, checkpoint, progress=progress)
    seal_folder(folder, training=training)


def _write_code(declaration: DLRMDeclaration, folder: Path) -> None:
    if declaration.module is None:
        return
    (folder / MODULE_FOLDER).mkdir(exist_ok=True)
    for name, text in (declaration.module.sources or {}).items():
        (folder / MODULE_FOLDER / name).write_bytes(text.encode())


def seal_folder(folder: Path, *, training: Mapping[str, str] | None = None) -> None:
    """Write ``seal.json`` for the sealed weights in ``folder``, and for all else if it is an archive's.

    OSError if a file is missing.
    """
    write_seal(folder, _names(folder), training=training)


def reseal(folder: Path, seal: Seal, *, evaluation: Evaluation | None = None) -> None:
    """Seal ``folder`` anew, a file having been added, or with new figures; what else ``seal`` says stays."""
    write_seal(
        folder,
        _names(folder),
        versions=seal.versions,
        training=seal.training,
        evaluation=seal.evaluation if evaluation is None else evaluation,
    )


def _names(folder: Path) -> list[str]:
    names = {DECLARATION_FILE, DENSE_FILE, TABLE_FILE}
    names |= {name for name in OPTIONAL_FILES if (folder / name).is_file()}
    names |= {path.relative_to(folder).as_posix() for path in (folder / MODULE_FOLDER).glob("*.py")}
    if (folder / HANDLER_FILE).is_file():
        names |= {name for name in unsealed_files(folder, ()) if "__pycache__" not in name}
    return sorted(names)

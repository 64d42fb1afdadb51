"""A model's sealed weights, as an archive carries them.

``declaration.yaml``, ``dense.safetensors``, ``tables.bin``, and ``vocabularies.bin`` where ids have any.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from dlrm_factory.config.declaration import DLRMDeclaration
from dlrm_factory.config.reading import dump_declaration, read_declaration
from dlrm_factory.errors import ConfigError, WeightsError
from dlrm_factory.features import FeatureEncoder, Vocabularies
from dlrm_factory.held_out import HELD_OUT_FILE, HeldOut, write_held_out
from dlrm_factory.weights.rows import RowSource
from dlrm_factory.weights.table_file import Progress, TableFile, write_table_file

__all__ = [
    "DECLARATION_FILE",
    "DENSE_FILE",
    "TABLE_FILE",
    "VOCABULARY_FILE",
    "SealedWeights",
    "read_dense",
    "seal_weights",
]

DECLARATION_FILE = "declaration.yaml"
DENSE_FILE = "dense.safetensors"
TABLE_FILE = "tables.bin"
VOCABULARY_FILE = "vocabularies.bin"


class _Sealable(RowSource, Protocol):
    declaration: DLRMDeclaration
    vocabularies: Vocabularies | None
    held_out: HeldOut | None

    def dense_state(self) -> dict[str, torch.Tensor]: ...


class SealedWeights:
    """A folder of sealed weights, opened: the declaration is read, tables and vocabularies are mapped."""

    def __init__(self, folder: Path) -> None:
        """WeightsError if a file is missing or damaged, or they do not belong together."""
        self.folder = folder
        try:
            self.declaration = read_declaration(folder / DECLARATION_FILE)
        except ConfigError as error:
            raise WeightsError(f"the archive's declaration is not usable: {error}") from None
        self.tables = TableFile(folder / TABLE_FILE)
        self.tables.check(self.declaration)
        self.vocabularies: Vocabularies | None = None
        if self.declaration.vocabulary_tables:
            self.vocabularies = Vocabularies.map(folder / VOCABULARY_FILE)
            self.vocabularies.check(self.declaration)

    @property
    def files(self) -> list[str]:
        """The names of its files."""
        optional = [name for name in (VOCABULARY_FILE, HELD_OUT_FILE) if (self.folder / name).is_file()]
        return [DECLARATION_FILE, DENSE_FILE, TABLE_FILE, *optional]

    def dense_state(self) -> dict[str, torch.Tensor]:
        """Every weight but the tables': float32, by state dict key."""
        return read_dense(self.folder)


def read_dense(folder: Path) -> dict[str, torch.Tensor]:
    """The dense weights of the sealed weights in ``folder``. WeightsError if they cannot be read."""
    path = folder / DENSE_FILE
    try:
        return load_file(path)
    except FileNotFoundError:
        raise WeightsError(f"{path}: there is no such file of dense weights") from None
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path}: is not a safetensors file: {error}") from None


def seal_weights(checkpoint: _Sealable, folder: Path, *, progress: Progress | None = None) -> None:
    """Write the sealed weights of ``checkpoint`` into ``folder``, tables in their declared dtypes.

    ``progress(bytes_done, bytes_total)`` is called after each block of rows.
    WeightsError if no request could be encoded: a vocabulary, or a feature's mean and std, is missing.
    """
    FeatureEncoder(checkpoint.declaration, checkpoint.vocabularies)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / DECLARATION_FILE).write_text(dump_declaration(checkpoint.declaration), encoding="utf-8")
    save_file(checkpoint.dense_state(), folder / DENSE_FILE)
    if checkpoint.vocabularies is not None:
        (folder / VOCABULARY_FILE).write_bytes(checkpoint.vocabularies.data)
    if checkpoint.held_out is not None:
        write_held_out(checkpoint.held_out, folder)
    write_table_file(folder / TABLE_FILE, checkpoint.declaration, checkpoint, progress=progress)

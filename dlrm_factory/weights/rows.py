"""Sources of a table's float rows: a checkpoint, a state dict, or a seed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Protocol

import torch
import xxhash

from dlrm_factory.config.declaration import DLRMDeclaration
from dlrm_factory.errors import WeightsError
from dlrm_factory.model.model import table_weight_key

__all__ = ["BLOCK_ROWS", "RandomRows", "RowSource", "StateDictRows"]

BLOCK_ROWS = 65_536  # rows in memory at once while tables are written or filled


class RowSource(Protocol):
    """Anything that yields float rows of tables, a block at a time."""

    def table_rows(self, table: str, start: int, stop: int) -> torch.Tensor:
        """Rows [start, stop) of ``table``: float32 [stop - start, D]."""
        ...


class StateDictRows:
    """Rows of a state dict with the unsharded TorchRec model's keys. WeightsError if one is missing."""

    def __init__(self, declaration: DLRMDeclaration, state: Mapping[str, torch.Tensor]) -> None:
        self._declaration, self._state = declaration, state
        for table in declaration.tables:
            key, shape = (
                table_weight_key(table.name, table.pooling),
                (table.num_embeddings, table.embedding_dim),
            )
            if key not in state:
                raise WeightsError(f'the state dict has no "{key}", the weight of table "{table.name}"')
            if tuple(state[key].shape) != shape:
                raise WeightsError(
                    f'"{key}" is {tuple(state[key].shape)} but table "{table.name}" is declared {shape}'
                )

    def table_rows(self, table: str, start: int, stop: int) -> torch.Tensor:
        return self._state[table_weight_key(table, self._declaration.table(table).pooling)][
            start:stop
        ].float()


class RandomRows:
    """TorchRec's initial rows, uniform in ±1/sqrt(num_embeddings); a seed's are the same for any sharding."""

    def __init__(self, declaration: DLRMDeclaration, seed: int) -> None:
        self._declaration = declaration
        self._seed = seed
        self._latest: tuple[tuple[str, int], torch.Tensor] | None = None  # asked for in smaller parts

    def table_rows(self, table: str, start: int, stop: int) -> torch.Tensor:
        first = start // BLOCK_ROWS
        blocks = [self._block(table, block) for block in range(first, -(-stop // BLOCK_ROWS))]
        offset = first * BLOCK_ROWS
        if not blocks:
            return torch.empty(0)
        found = blocks[0] if len(blocks) == 1 else torch.cat(blocks)
        return found[start - offset : stop - offset]

    def _block(self, name: str, block: int) -> torch.Tensor:
        if self._latest is not None and self._latest[0] == (name, block):
            return self._latest[1]
        table = self._declaration.table(name)
        rows = min(BLOCK_ROWS, table.num_embeddings - block * BLOCK_ROWS)
        seed = xxhash.xxh64_intdigest(f"{self._seed}/{name}/{block}".encode())
        generator = torch.Generator().manual_seed(seed % 2**63)
        bound = 1 / math.sqrt(table.num_embeddings)
        made = torch.empty(rows, table.embedding_dim).uniform_(-bound, bound, generator=generator)
        self._latest = (name, block), made
        return made

"""Rows → the lookups of a sharded model, after sharding: TorchRec drops what was loaded before."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn
from torchrec.distributed.embedding import ShardedEmbeddingCollection
from torchrec.distributed.embeddingbag import ShardedEmbeddingBagCollection

from dlrm_factory.config.declaration import DLRMDeclaration, TableDtype
from dlrm_factory.model.dtypes import column_bytes, encode_rows, row_bytes, scale_bias_bytes
from dlrm_factory.model.quantize import QuantizedEmbeddingBag, kernels_of
from dlrm_factory.weights.rows import BLOCK_ROWS, RowSource
from dlrm_factory.weights.table_file import TableFile

__all__ = ["FloatShard", "fill_float_tables", "fill_quantized_tables", "float_shards", "map_quantized_tables"]


@dataclass(frozen=True, kw_only=True)
class FloatShard:
    """Part of a float table that this rank holds.

    Fields:
        weight: float32 [rows, columns], the live parameter's memory.
        data_parallel: every rank has the whole table.
        lookup: fbgemm's lookup that holds the part, among others.
        index: the part's place among those of the lookup.
    """

    table: str
    row_offset: int
    column_offset: int
    weight: torch.Tensor
    data_parallel: bool
    lookup: nn.Module
    index: int


def float_shards(model: nn.Module) -> Iterator[FloatShard]:
    """Shards, on this rank, of every table of a float model."""
    for module in model.modules():
        if not isinstance(module, (ShardedEmbeddingBagCollection, ShardedEmbeddingCollection)):
            continue
        for lookup in module._lookups:
            # data_parallel lookups are wrapped in DistributedDataParallel.
            for kernel in getattr(lookup, "module", lookup)._emb_modules:
                weights = kernel.split_embedding_weights()
                for index, (table, weight) in enumerate(
                    zip(kernel.config.embedding_tables, weights, strict=True)
                ):
                    row, column = _offsets(table)
                    yield FloatShard(
                        table=table.name,
                        row_offset=row,
                        column_offset=column,
                        weight=weight.detach(),
                        data_parallel=table.local_metadata is None,
                        lookup=kernel.emb_module,
                        index=index,
                    )


@torch.no_grad()
def fill_float_tables(model: nn.Module, source: RowSource) -> None:
    """Load every table of a sharded float model, a block of rows at a time."""
    for shard in float_shards(model):
        rows, columns = shard.weight.shape
        for start in range(0, rows, BLOCK_ROWS):
            stop = min(start + BLOCK_ROWS, rows)
            block = source.table_rows(shard.table, shard.row_offset + start, shard.row_offset + stop)
            shard.weight[start:stop].copy_(block[:, shard.column_offset : shard.column_offset + columns])


@torch.no_grad()
def fill_quantized_tables(model: nn.Module, declaration: DLRMDeclaration, source: RowSource) -> None:
    """Encode ``source`` into memory of the model's own, a block of rows at a time."""
    for kernel in kernels_of(model):
        kernel.tbe.initialize_weights()
        memory = kernel.tbe.split_embedding_weights(split_scale_shifts=False)
        for table, (rows, _) in zip(kernel.tables, memory, strict=True):
            dtype = declaration.table(table.name).dtype
            first, column = _offsets(table)
            for start in range(0, table.local_rows, BLOCK_ROWS):
                stop = min(start + BLOCK_ROWS, table.local_rows)
                encoded = encode_rows(source.table_rows(table.name, first + start, first + stop), dtype)
                _copy_columns(rows[start:stop], encoded, dtype, column, table.local_cols)


@torch.no_grad()
def map_quantized_tables(model: nn.Module, declaration: DLRMDeclaration, file: TableFile) -> None:
    """Let the model's lookups read ``file`` in place on CPU; copy only column_wise shards, and all on CUDA.

    WeightsError if the file does not hold the declared tables.
    """
    file.check(declaration)
    for kernel in kernels_of(model):
        if kernel.tbe.current_device.type == "cpu" and not _has_column_shard(kernel):
            _point_at_file(kernel, file)
            continue
        kernel.tbe.initialize_weights()
        memory = kernel.tbe.split_embedding_weights(split_scale_shifts=False)
        for table, (rows, _) in zip(kernel.tables, memory, strict=True):
            first, column = _offsets(table)
            encoded = file.rows(table.name)[first : first + table.local_rows]
            for start in range(0, table.local_rows, BLOCK_ROWS):
                block = slice(start, start + BLOCK_ROWS)
                dtype = declaration.table(table.name).dtype
                _copy_columns(rows[block], encoded[block], dtype, column, table.local_cols)


def _offsets(table: object) -> tuple[int, int]:
    """Global (row, column) of a shard's first value; a data_parallel table is whole."""
    metadata = getattr(table, "local_metadata", None)
    return (0, 0) if metadata is None else (metadata.shard_offsets[0], metadata.shard_offsets[1])


def _has_column_shard(kernel: QuantizedEmbeddingBag) -> bool:
    return any(table.local_cols != table.embedding_dim for table in kernel.tables)


def _point_at_file(kernel: QuantizedEmbeddingBag, file: TableFile) -> None:
    """One buffer, the whole file; each table's offset is where its first local row lies in it."""
    tbe = kernel.tbe
    tbe.weights_physical_placements = [spec[4].value for spec in tbe.embedding_specs]
    tbe.weights_physical_offsets = [
        file.tables[table.name].offset + _offsets(table)[0] * file.tables[table.name].row_bytes
        for table in kernel.tables
    ]
    tbe.weights_host = file.bytes
    tbe.host_size = file.bytes.numel()
    tbe.initialize_logical_weights_placements_and_offsets()
    tbe.weight_initialized = True


def _copy_columns(
    target: torch.Tensor, encoded: torch.Tensor, dtype: TableDtype, column: int, columns: int
) -> None:
    """Columns [column, column + columns) of ``encoded`` rows into ``target`` rows, which may be padded.

    A column shard keeps the whole row's scale and bias, so it holds just the values of the unsharded row.
    """
    head = scale_bias_bytes(dtype)
    first, size = head + column_bytes(dtype, column), column_bytes(dtype, columns)
    target[:, :head].copy_(encoded[:, :head])
    target[:, head : row_bytes(dtype, columns)].copy_(encoded[:, first : first + size])

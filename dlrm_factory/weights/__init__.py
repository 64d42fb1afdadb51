"""Table rows: where they come from, the file they are sealed in, how they reach a sharded model."""

from dlrm_factory.weights.loading import (
    FloatShard,
    fill_float_tables,
    fill_quantized_tables,
    float_shards,
    map_quantized_tables,
)
from dlrm_factory.weights.rows import RandomRows, RowSource, StateDictRows
from dlrm_factory.weights.sealed import SealedWeights, reseal, seal_folder, seal_weights
from dlrm_factory.weights.table_file import TableFile, create_table_file, write_table_file

__all__ = [
    "FloatShard",
    "RandomRows",
    "RowSource",
    "SealedWeights",
    "StateDictRows",
    "TableFile",
    "create_table_file",
    "fill_float_tables",
    "fill_quantized_tables",
    "float_shards",
    "map_quantized_tables",
    "reseal",
    "seal_folder",
    "seal_weights",
    "write_table_file",
]

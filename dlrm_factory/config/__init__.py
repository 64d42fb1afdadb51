"""The model's declaration: what it may say, the rules it must keep, how it is read, the presets."""

from dlrm_factory.config.declaration import (
    DenseFeature,
    DLRMDeclaration,
    ModuleArchitecture,
    Output,
    SparseFeature,
    Table,
)
from dlrm_factory.config.options import ServingOptions, ShardingOptions, TrainingOptions
from dlrm_factory.config.presets import CRITEO_NUM_EMBEDDINGS, PRESETS, criteo, demo, preset, tiny
from dlrm_factory.config.reading import dump_declaration, parse_declaration, read_declaration
from dlrm_factory.config.sizes import format_bytes, parse_bytes

__all__ = [
    "CRITEO_NUM_EMBEDDINGS",
    "PRESETS",
    "DLRMDeclaration",
    "DenseFeature",
    "ModuleArchitecture",
    "Output",
    "ServingOptions",
    "ShardingOptions",
    "SparseFeature",
    "Table",
    "TrainingOptions",
    "criteo",
    "demo",
    "dump_declaration",
    "format_bytes",
    "parse_bytes",
    "parse_declaration",
    "preset",
    "read_declaration",
    "tiny",
]

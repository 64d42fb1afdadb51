"""The fast path on CPU: one lookup over the mapped tables, and the dense parts compiled by AOTInductor."""

from dlrm_factory.compiled.context_net import ContextNet, context_net
from dlrm_factory.compiled.context_nets import ContextNets
from dlrm_factory.compiled.dense_library import CompiledDense, compiled_dense, eager_reason, library_path
from dlrm_factory.compiled.dense_net import (
    DTYPES,
    DenseNet,
    Precision,
    best_precision,
    cpu_capability,
    make_dense_net,
    pooled_dtype,
)
from dlrm_factory.compiled.lookup import DirectLookup

__all__ = [
    "DTYPES",
    "CompiledDense",
    "ContextNet",
    "ContextNets",
    "DenseNet",
    "DirectLookup",
    "Precision",
    "best_precision",
    "compiled_dense",
    "context_net",
    "cpu_capability",
    "eager_reason",
    "library_path",
    "make_dense_net",
    "pooled_dtype",
]

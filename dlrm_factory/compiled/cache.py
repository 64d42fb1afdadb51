"""Under which name a compiled library is kept on this host."""

from __future__ import annotations

import torch
import xxhash

from dlrm_factory.compiled.capability import Precision, cpu_capability
from dlrm_factory.config.declaration import DLRMDeclaration
from dlrm_factory.host.cache import cache_folder

__all__ = ["cache_folder", "library_name"]

_LAYOUT = 7  # raised when DenseNet or how it is compiled changes


def library_name(declaration: DLRMDeclaration, dense_weights: bytes, precision: Precision) -> str:
    """A name that changes with everything a library depends on: weights, shapes, versions, CPU, threads.

    ``dense_weights``: the file with the dense weights, whole.
    """
    shape = repr(
        (
            _LAYOUT,
            declaration.architecture,
            declaration.dense_arch_layer_sizes,
            declaration.over_arch_layer_sizes,
            declaration.dcn_num_layers,
            declaration.dcn_low_rank_dim,
            declaration.interaction_branch1_layer_sizes,
            declaration.interaction_branch2_layer_sizes,
            declaration.dense_names,
            [(feature.name, feature.table) for feature in declaration.sparse_features],
            [table.name for table in declaration.tables],
            declaration.embedding_dim,
            precision,
            torch.__version__,
            cpu_capability(),
            torch.get_num_threads(),
        )
    )
    digest = xxhash.xxh3_128(dense_weights)
    digest.update(shape.encode())
    return f"dense-{digest.hexdigest()}.so"

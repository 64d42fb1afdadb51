"""Number of torch threads that pay for a model's size."""

from __future__ import annotations

from itertools import pairwise

from dlrm_factory.config.declaration import DLRMDeclaration

__all__ = ["fitting_threads"]

_SMALL = 100_000_000


def fitting_threads(declaration: DLRMDeclaration, cores: int) -> int:
    """Number of threads: 1 for a small model, else ``cores``.

    Threads of a small model wait for each other more than they work. Measured with the demo model (18
    thousand multiplications a sample, batch 512): two threads are no faster than one on two idle cores, and
    ten times slower while another program runs.
    """
    widths = [
        [len(declaration.dense_features), *declaration.dense_arch_layer_sizes],
        [_interactions(declaration), *declaration.over_arch_layer_sizes],
    ]
    multiplications = sum(a * b for sizes in widths for a, b in pairwise(sizes))
    return 1 if multiplications * declaration.training.batch_size < _SMALL else cores


def _interactions(declaration: DLRMDeclaration) -> int:
    """Inputs of the over arch of a plain DLRM; about the same for the others."""
    vectors = len(declaration.sparse_features) + 1
    return declaration.embedding_dim + vectors * (vectors - 1) // 2

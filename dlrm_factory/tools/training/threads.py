"""Number of torch threads that pay for a model's size."""

from __future__ import annotations

from dlrm_factory.config.declaration import DLRMDeclaration
from dlrm_factory.model.model import make_model

__all__ = ["fitting_threads"]

_SMALL = 100_000_000


def fitting_threads(declaration: DLRMDeclaration, cores: int) -> int:
    """Number of threads: 1 for a small model, else ``cores``.

    Threads of a small model wait for each other more than they work. Measured with the demo model (18
    thousand multiplications a sample, batch 512): two threads are no faster than one on two idle cores, and
    ten times slower while another program runs.
    """
    net = make_model(declaration, dense_device="meta").net
    multiplications = sum(weight.numel() for weight in net.parameters() if weight.dim() > 1)
    return 1 if multiplications * declaration.training.batch_size < _SMALL else cores

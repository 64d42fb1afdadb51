"""Sharded TorchRec deep learning recommendation models, from declaration to scores."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from dlrm_factory._version import __version__ as __version__

if TYPE_CHECKING:
    from dlrm_factory.batch import FeatureBatch
    from dlrm_factory.config import DLRMDeclaration, preset, read_declaration
    from dlrm_factory.errors import DLRMError
    from dlrm_factory.factory import BuiltDLRM, DLRMFactory
    from dlrm_factory.scorer import Scorer
    from dlrm_factory.weights.checkpoint import open_checkpoint, save_checkpoint

_HOMES = {
    "BuiltDLRM": "factory",
    "DLRMDeclaration": "config",
    "DLRMError": "errors",
    "DLRMFactory": "factory",
    "FeatureBatch": "batch",
    "Scorer": "scorer",
    "open_checkpoint": "weights.checkpoint",
    "preset": "config",
    "read_declaration": "config",
    "save_checkpoint": "weights.checkpoint",
}

__all__ = [
    "BuiltDLRM",
    "DLRMDeclaration",
    "DLRMError",
    "DLRMFactory",
    "FeatureBatch",
    "Scorer",
    "open_checkpoint",
    "preset",
    "read_declaration",
    "save_checkpoint",
]


def __getattr__(name: str) -> Any:
    # Imported when first asked for: most of it brings torch, and `dlrm --help` need not wait for that.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)

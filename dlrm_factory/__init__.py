"""Sharded TorchRec deep learning recommendation models, from declaration to scores."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dlrm_factory.batch import FeatureBatch
    from dlrm_factory.checkpoint import open_checkpoint, save_checkpoint
    from dlrm_factory.config import DLRMDeclaration, preset, read_declaration
    from dlrm_factory.errors import DLRMError
    from dlrm_factory.factory import BuiltDLRM, DLRMFactory
    from dlrm_factory.scorer import Scorer

__version__ = "0.1.0"

_HOMES = {
    "BuiltDLRM": "factory",
    "DLRMDeclaration": "config",
    "DLRMError": "errors",
    "DLRMFactory": "factory",
    "FeatureBatch": "batch",
    "Scorer": "scorer",
    "open_checkpoint": "checkpoint",
    "preset": "config",
    "read_declaration": "config",
    "save_checkpoint": "checkpoint",
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

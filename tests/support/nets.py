"""Declared models with dense nets of their own, of ``tests/models/nets``, whose code this process then trusts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from dlrm_factory.config import DLRMDeclaration, read_declaration
from dlrm_factory.config.trust import trust_code

NETS = Path(__file__).parents[1] / "models" / "nets"


def net(name: str, **training: Any) -> DLRMDeclaration:
    """Declaration called ``name``, with changes of its training options."""
    declaration = read_declaration(NETS / f"{name}.yaml")
    trust_code(declaration)
    options = msgspec.structs.replace(declaration.training, **training)
    return msgspec.structs.replace(declaration, training=options)

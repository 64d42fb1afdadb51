"""Declarations of dense nets of several kinds, their code beside them in ``tests/models/nets``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from dlrm_factory.config import DLRMDeclaration, read_declaration
from dlrm_factory.config.trust import trust_code

__all__ = ["NETS", "trusted"]

NETS = Path(__file__).resolve().parents[1] / "models" / "nets"


def trusted(name: str, **training: Any) -> DLRMDeclaration:
    """The declaration ``name``, whose code this process, and those that it starts, may run from now on.

    ``training``: changes of its training options.
    """
    declaration = read_declaration(NETS / f"{name}.yaml")
    trust_code(declaration)
    options = msgspec.structs.replace(declaration.training, **training)
    return msgspec.structs.replace(declaration, training=options)

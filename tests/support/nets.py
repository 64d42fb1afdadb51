"""Declarations of dense nets of several kinds, their code beside them."""

from __future__ import annotations

from pathlib import Path

from dlrm_factory.config import DLRMDeclaration, read_declaration
from dlrm_factory.config.trust import trust_code

__all__ = ["NETS", "trusted"]

NETS = Path(__file__).resolve().parents[1] / "models" / "nets"


def trusted(name: str) -> DLRMDeclaration:
    """The declaration ``name``, whose code this process, and those that it starts, may run from now on."""
    declaration = read_declaration(NETS / f"{name}.yaml")
    trust_code(declaration)
    return declaration

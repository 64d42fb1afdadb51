"""The CONFIG argument of several commands: a YAML file, or a preset's name."""

from __future__ import annotations

from pathlib import Path

from dlrm_factory.config import DLRMDeclaration, preset, read_declaration

__all__ = ["declaration_of"]


def declaration_of(config: str) -> DLRMDeclaration:
    """The declaration in the file ``config``; a bare word that is no file names a preset."""
    if Path(config).exists() or Path(config).suffix or "/" in config:
        return read_declaration(config)
    return preset(config)

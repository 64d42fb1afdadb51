"""Code that this user has trained with, or has said to trust: remembered by its digest, in a file of the user's own."""

from __future__ import annotations

import os
from pathlib import Path

from dlrm_factory.config import DLRMDeclaration
from dlrm_factory.config.trust import TRUST_VARIABLE, code_digest, trust_code
from dlrm_factory.host.cache import cache_folder

__all__ = ["recall_trust", "trust_own_code"]

_FILE = "trusted-code"
_MAX_BYTES = 1 << 20


def recall_trust() -> None:
    """Let this process run the code that is remembered."""
    path = _path()
    try:
        known = "" if path is None else path.read_text(encoding="ascii")[:_MAX_BYTES]
    except (OSError, UnicodeDecodeError):
        return
    digests = [line for line in known.split() if len(line) == 64]
    if digests:
        os.environ[TRUST_VARIABLE] = ",".join(filter(None, [os.environ.get(TRUST_VARIABLE), *digests]))


def trust_own_code(declaration: DLRMDeclaration) -> None:
    """Let this process run the code that ``declaration`` brings, and remember it for later commands of this user."""
    if declaration.module is None:
        return
    trust_code(declaration)
    path, line = _path(), f"{code_digest(declaration.module)}\n"
    if path is None:
        return
    try:
        if path.is_file() and line in path.read_text(encoding="ascii"):
            return
        with path.open("a", encoding="ascii") as file:
            file.write(line)
    except (OSError, UnicodeDecodeError):
        return  # later commands ask again


def _path() -> Path | None:
    folder = cache_folder()
    return None if folder is None else folder / _FILE

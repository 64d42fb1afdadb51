"""Trust in the code that a declaration brings: may it run?

Code may do anything that its process may. So none runs that the process was not told to trust, by `trust_code`: a
worker trusts what its archive seals, `dlrm train` what it is given, and all else asks for ``--trust-code``. What a
process trusts is in its environment, so that processes which it starts trust it too.
"""

from __future__ import annotations

import hashlib
import os

from dlrm_factory.config.declaration import DLRMDeclaration, ModuleArchitecture

__all__ = ["TRUST_VARIABLE", "code_digest", "is_trusted", "may_run", "trust_code"]

TRUST_VARIABLE = "DLRM_TRUSTED_CODE"  # digests of code, or ALL_CODE, with commas between them
ALL_CODE = "all"


def code_digest(module: ModuleArchitecture) -> str:
    """SHA-256, in hexadecimal, of the names and the text of the module's files."""
    digest = hashlib.sha256()
    for name, text in sorted((module.sources or {}).items()):
        for part in (name, text):
            data = part.encode()
            digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


def trust_code(declaration: DLRMDeclaration | None) -> None:
    """Let this process, and those that it starts, run the code that ``declaration`` brings, if any; None for all code.

    For code that was read, or that is one's own.
    """
    if declaration is None:
        _trust(ALL_CODE)
    elif declaration.module is not None:
        _trust(code_digest(declaration.module))


def is_trusted(declaration: DLRMDeclaration) -> bool:
    """Return True if the declaration brings no code, or code that this process may run."""
    return declaration.module is None or may_run(code_digest(declaration.module))


def _trust(digest: str) -> None:
    if not may_run(digest):
        os.environ[TRUST_VARIABLE] = ",".join(filter(None, [os.environ.get(TRUST_VARIABLE), digest]))


def may_run(digest: str) -> bool:
    """Return True if this process may run code of that digest."""
    return not {ALL_CODE, digest}.isdisjoint(os.environ.get(TRUST_VARIABLE, "").split(","))

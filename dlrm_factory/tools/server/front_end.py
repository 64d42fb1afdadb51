"""The front end's limits: its largest request, and the memory of its Java process."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from dlrm_factory.config import DLRMDeclaration, parse_declaration
from dlrm_factory.errors import ConfigError
from dlrm_factory.host.memory_limit import memory_limit
from dlrm_factory.tools.server.store import ServedModel

__all__ = ["front_end_changes"]

# In every archive of ours; named here because the package that writes it imports torch, which takes seconds.
_DECLARATION_FILE = "declaration.yaml"
_MAX_DECLARATION_BYTES = 16 << 20
# Frames of gRPC and of multipart forms, and bodies so little too large that the handler's own answer helps more.
_SLACK = 64 << 10
_MAX_INT = 2**31 - 1  # of Java
_HEAP_BASE = 512 << 20  # TorchServe itself, its buffers and metrics
_DIRECT_BASE = 256 << 20
_SHARE = 4  # heap and direct memory each take at most this part of the machine's memory
_MIN_MEMORY = 256 << 20  # less and TorchServe does not start
_HEAP = ("-Xmx", "-XX:MaxHeapSize=", "-XX:MaxRAMPercentage=")
_DIRECT = ("-XX:MaxDirectMemorySize=",)


def front_end_changes(
    found: Mapping[str, str],
    shipped: Mapping[str, str],
    models: Sequence[ServedModel],
    memory: int | None = None,
) -> dict[str, str]:
    """The properties that follow the models: max_request_size, and the memory in vmargs.

    Values of the user's own, which are not the shipped ones, stay.

    Args:
        found: the base's properties.
        shipped: the shipped file's.
        models: to be served.
        memory: bytes that this machine or container has; None asks it.
    """
    declarations = [_declaration(model.path) for model in models]
    size = int(found.get("max_request_size", shipped["max_request_size"]))
    changes = {}
    if found.get("max_request_size", shipped["max_request_size"]) == shipped["max_request_size"] and models:
        size = min(max(_largest(each, size) for each in declarations), _MAX_INT)
        changes["max_request_size"] = str(size)
    queue = int(found.get("job_queue_size", shipped["job_queue_size"]))
    limit = max((memory or memory_limit()) // _SHARE, _MIN_MEMORY)
    # Every request that waits, whole.
    heap = min(_HEAP_BASE + queue * size * max(len(models), 1), limit)
    # A batch is written to its worker in one piece, which is copied as it grows.
    batches = sum(_batch_requests(each) for each in declarations)
    direct = min(_DIRECT_BASE + 2 * batches * size, limit)
    words = found.get("vmargs", shipped["vmargs"]).split()
    words = _bounded(words, shipped["vmargs"].split(), _HEAP, f"-Xmx{heap >> 20}m")
    words = _bounded(words, shipped["vmargs"].split(), _DIRECT, f"{_DIRECT[0]}{direct >> 20}m")
    return changes | {"vmargs": " ".join(words)}


def _largest(declaration: DLRMDeclaration | None, otherwise: int) -> int:
    return otherwise if declaration is None else declaration.serving.max_body_bytes + _SLACK


def _batch_requests(declaration: DLRMDeclaration | None) -> int:
    """Requests that lie in batches at once, over all workers."""
    if declaration is None:
        return 1
    return declaration.serving.batch_requests * declaration.serving.max_workers


def _bounded(words: list[str], shipped: list[str], starts: tuple[str, ...], option: str) -> list[str]:
    """``words`` with ``option``, unless they hold one of ``starts`` that is not the shipped one."""
    if any(word.startswith(starts) and word not in shipped for word in words):
        return words
    return [*(word for word in words if not word.startswith(starts)), option]


def _declaration(path: Path) -> DLRMDeclaration | None:
    """The declaration in the archive or folder at ``path``; None if there is none that can be read quickly."""
    try:
        text = _declaration_text(path)
        return None if text is None else parse_declaration(text, source=str(path))
    except (OSError, KeyError, ValueError, ConfigError, zipfile.BadZipFile, zlib.error, EOFError):
        return None  # an archive that is not ours, or broken: its worker says so


def _declaration_text(path: Path) -> str | None:
    if path.is_dir():
        return (path / _DECLARATION_FILE).read_text(encoding="utf-8")
    if not zipfile.is_zipfile(path):
        return None
    with zipfile.ZipFile(path) as archive:
        if archive.getinfo(_DECLARATION_FILE).file_size > _MAX_DECLARATION_BYTES:
            return None
        return archive.read(_DECLARATION_FILE).decode("utf-8")

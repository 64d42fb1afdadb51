"""Compiled libraries: found in the cache, or built once for all workers of a host."""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Callable
from pathlib import Path

import torch

from dlrm_factory.compiled.build import build_in_subprocess, compiler, few_samples_library
from dlrm_factory.compiled.cache import cache_folder, library_name
from dlrm_factory.compiled.capability import Precision
from dlrm_factory.config.declaration import DLRMDeclaration
from dlrm_factory.weights.sealed import DENSE_FILE

__all__ = ["FEW_SAMPLES", "CompiledDense", "compiled_dense", "library_path"]

logger = logging.getLogger(__name__)

CompiledDense = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Runner = Callable[[list[torch.Tensor]], list[torch.Tensor]]

# Up to so many samples, code of its own is faster than a library's products. bf16: 0.05 ms in place of 0.2 ms for one
# sample, the same for 16. fp32: 0.08 ms in place of 0.10 ms for one, the same for 8.
FEW_SAMPLES: dict[Precision, int] = {"bf16": 16, "fp32": 8}


def library_path(folder: Path, declaration: DLRMDeclaration, precision: Precision) -> Path | None:
    """Where the library for the sealed weights in ``folder`` is or would be on this host; None without a cache."""
    cache = cache_folder()
    if cache is None:
        return None
    return cache / library_name(declaration, (folder / DENSE_FILE).read_bytes(), precision)


def compiled_dense(
    folder: Path, declaration: DLRMDeclaration, precision: Precision, *, build: bool = True
) -> CompiledDense | None:
    """The compiled `DenseNet` of the sealed weights in ``folder``: (dense, pooled) → logits.

    One process of the host builds it, the others wait for that. None, after one log line, when it cannot be had;
    the caller then scores eagerly.
    """
    library = library_path(folder, declaration, precision)
    if library is None:
        logger.warning("No folder to keep compiled code in; scoring eagerly. Set DLRM_CACHE_DIR to one.")
        return None
    if not library.is_file() and not (build and _build_once(folder, library, precision)):
        return None
    many = _load(library)
    if many is None:
        return None
    few_library = few_samples_library(library)
    few = _load(few_library) if few_library.is_file() else None
    return _BySize(few or many, many, FEW_SAMPLES[precision])


class _BySize:
    """Runs the code that was made for batches of a size."""

    def __init__(self, few: Runner, many: Runner, most_few: int) -> None:
        self._few, self._many, self._most_few = few, many, most_few

    def __call__(self, dense: torch.Tensor, pooled: torch.Tensor) -> torch.Tensor:
        run = self._few if dense.shape[0] <= self._most_few else self._many
        return run([dense, pooled])[0]


def _load(library: Path) -> Runner | None:
    try:
        # Without torch's wrapper, which reads how to flatten the arguments from JSON at every call: 0.1 ms.
        runner: Runner = torch._C._aoti.AOTIModelContainerRunnerCpu(str(library), 1).run
    except Exception as error:
        logger.warning("The compiled code in %s cannot be loaded (%s); scoring without it", library, error)
        library.unlink(missing_ok=True)
        return None
    return runner


def _build_once(folder: Path, library: Path, precision: Precision) -> bool:
    """True if the library is there in the end. A lock file makes one process build and the others wait."""
    if compiler() is None:
        logger.warning("No C++ compiler on this host, so nothing can be compiled; scoring eagerly")
        return False
    with (library.parent / f"{library.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if library.is_file():
            return True
        logger.info("Compiling the dense parts in %s, once for this host (pid %d)", precision, os.getpid())
        failure = build_in_subprocess(folder, library, precision)
    if failure is not None:
        logger.warning("The dense parts could not be compiled (%s); scoring eagerly", failure)
    return failure is None

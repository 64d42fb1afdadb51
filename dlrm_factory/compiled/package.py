"""Compiled packages: found in the cache, or built once for all workers of a host."""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Callable
from pathlib import Path

import torch

from dlrm_factory.compiled.build import build_in_subprocess, compiler
from dlrm_factory.compiled.cache import cache_folder, package_name
from dlrm_factory.compiled.capability import Precision
from dlrm_factory.config.declaration import DLRMDeclaration
from dlrm_factory.weights.sealed import DENSE_FILE

__all__ = ["CompiledDense", "compiled_dense", "package_path"]

logger = logging.getLogger(__name__)

CompiledDense = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def package_path(folder: Path, declaration: DLRMDeclaration, precision: Precision) -> Path | None:
    """Where the package for the sealed weights in ``folder`` is or would be on this host; None without a cache."""
    cache = cache_folder()
    if cache is None:
        return None
    return cache / package_name(declaration, (folder / DENSE_FILE).read_bytes(), precision)


def compiled_dense(
    folder: Path, declaration: DLRMDeclaration, precision: Precision, *, build: bool = True
) -> CompiledDense | None:
    """The compiled `DenseNet` of the sealed weights in ``folder``: (dense, pooled) → logits.

    One process of the host builds it, the others wait for that. None, after one log line, when it cannot be had;
    the caller then scores eagerly.
    """
    package = package_path(folder, declaration, precision)
    if package is None:
        logger.warning("No folder to keep compiled code in; scoring eagerly. Set DLRM_CACHE_DIR to one.")
        return None
    if not package.is_file() and not (build and _build_once(folder, package, precision)):
        return None
    try:
        loaded: CompiledDense = torch._inductor.aoti_load_package(str(package))
    except Exception as error:
        logger.warning("The compiled package %s cannot be loaded (%s); scoring eagerly", package, error)
        package.unlink(missing_ok=True)
        return None
    return loaded


def _build_once(folder: Path, package: Path, precision: Precision) -> bool:
    """True if the package is there in the end. A lock file makes one process build and the others wait."""
    if compiler() is None:
        logger.warning("No C++ compiler on this host, so nothing can be compiled; scoring eagerly")
        return False
    with (package.parent / f"{package.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if package.is_file():
            return True
        logger.info("Compiling the dense parts in %s, once for this host (pid %d)", precision, os.getpid())
        failure = build_in_subprocess(folder, package, precision)
    if failure is not None:
        logger.warning("The dense parts could not be compiled (%s); scoring eagerly", failure)
    return failure is None

"""Sealed weights to compile, and what compiling leaves."""

from __future__ import annotations

from pathlib import Path

import msgspec
import xxhash

from dlrm_factory.compiled.dense_net import Precision
from dlrm_factory.config import DLRMDeclaration
from dlrm_factory.weights.checkpoint import open_checkpoint, save_checkpoint
from dlrm_factory.weights.sealed import seal_weights
from support.batches import random_state


def seal(declaration: DLRMDeclaration, folder: Path, *, precision: Precision = "fp32", seed: int = 5) -> Path:
    """Random weights of ``declaration`` in ``folder``/sealed."""
    serving = msgspec.structs.replace(declaration.serving, precision=precision)
    declaration = msgspec.structs.replace(declaration, serving=serving)
    save_checkpoint(folder / "c.safetensors", declaration, random_state(declaration, seed=seed))
    seal_weights(open_checkpoint(folder / "c.safetensors"), folder / "sealed")
    return folder / "sealed"


def checksum(path: Path) -> str:
    """Checksum of a library, as it is listed."""
    return xxhash.xxh3_128(path.read_bytes()).hexdigest()


def verdicts(cache: Path) -> list[str]:
    """Texts of the verdicts in ``cache``."""
    return [path.read_text() for path in cache.glob("verdict-*.json")]

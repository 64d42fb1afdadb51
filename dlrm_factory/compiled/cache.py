"""Where compiled packages are kept on this host, and under which name."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

import torch
import xxhash

from dlrm_factory.compiled.capability import Precision, cpu_capability
from dlrm_factory.config.declaration import DLRMDeclaration

__all__ = ["cache_folder", "package_name"]

_LAYOUT = 1  # raised when DenseNet or how it is compiled changes


def cache_folder() -> Path | None:
    """A folder of ours alone: packages are code, so nobody else may write there. None if there is none.

    ``$DLRM_CACHE_DIR``, else ``$XDG_CACHE_HOME/torchserve-dlrm`` or ``~/.cache/torchserve-dlrm``, else one in the
    temporary folder.
    """
    for folder in _candidates():
        if _is_ours(folder):
            return folder
    return None


def _candidates() -> list[Path]:
    if named := os.environ.get("DLRM_CACHE_DIR"):
        return [Path(named)]
    shared = Path(tempfile.gettempdir()) / f"torchserve-dlrm-{os.getuid()}"
    try:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser())
    except RuntimeError:  # this user has no home
        return [shared]
    return [home / "torchserve-dlrm", shared]


def _is_ours(folder: Path) -> bool:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.lstat()
        others_write = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        return status.st_uid == os.getuid() and not others_write and os.access(folder, os.W_OK)
    except OSError:
        return False


def package_name(declaration: DLRMDeclaration, dense_weights: bytes, precision: Precision) -> str:
    """A name that changes with everything a package depends on: weights, shapes, versions, CPU, threads.

    ``dense_weights``: the file with the dense weights, whole.
    """
    shape = repr(
        (
            _LAYOUT,
            declaration.architecture,
            declaration.dense_arch_layer_sizes,
            declaration.over_arch_layer_sizes,
            declaration.dcn_num_layers,
            declaration.dcn_low_rank_dim,
            declaration.interaction_branch1_layer_sizes,
            declaration.interaction_branch2_layer_sizes,
            declaration.dense_names,
            [(feature.name, feature.table) for feature in declaration.sparse_features],
            [table.name for table in declaration.tables],
            declaration.embedding_dim,
            precision,
            torch.__version__,
            cpu_capability(),
            torch.get_num_threads(),
        )
    )
    digest = xxhash.xxh3_128(dense_weights)
    digest.update(shape.encode())
    return f"dense-{digest.hexdigest()}.pt2"

"""model-config.yaml: how TorchServe runs an archive's model, and with how many ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from dlrm_factory.config.declaration import DLRMDeclaration
from dlrm_factory.errors import ArchiveError
from dlrm_factory.tools.archive.listing import read_archive_listing, read_text

__all__ = ["MODEL_CONFIG_FILE", "model_config", "ranks_of", "with_ranks"]

MODEL_CONFIG_FILE = "model-config.yaml"
_HEAD = """\
# How TorchServe runs this model, from `serving` and `sharding` of declaration.yaml.
# What stands here wins over config.properties.
"""
_PARALLEL, _TORCHRUN, _RANKS = "parallelType", "torchrun", "nproc-per-node"


def model_config(declaration: DLRMDeclaration) -> str:
    """The file's text: one key of TorchServe's a line, each with its meaning."""
    serving = declaration.serving
    lines: list[tuple[str, int | str, str]] = [
        ("minWorkers", serving.min_workers, "worker processes at start"),
        ("maxWorkers", serving.max_workers, "the most workers TorchServe keeps until it is scaled"),
        ("batchSize", serving.batch_requests, "the most requests handed to a worker at once"),
        ("maxBatchDelay", serving.batch_delay_ms, "ms a batch's first request waits for others"),
        ("responseTimeout", serving.response_timeout_s, "s until a batch fails and its worker is restarted"),
        ("startupTimeout", serving.startup_timeout_s, "s a worker may take to load the model"),
        (
            "deviceType",
            "gpu" if declaration.sharding.device == "cuda" else "cpu",
            "where the model is computed",
        ),
    ]
    text = _HEAD + "".join(f"{key}: {value}  # {meaning}\n" for key, value, meaning in lines)
    return text + _group(declaration.sharding.local_world_size)


def with_ranks(text: str, ranks: int) -> str:
    """``text`` of a model-config.yaml, for groups of ``ranks`` ranks; 1 for a worker of one process."""
    config = _parse(text, MODEL_CONFIG_FILE)
    kept = {key: value for key, value in config.items() if key not in (_PARALLEL, _TORCHRUN)}
    return _HEAD + yaml.safe_dump(kept, sort_keys=False) + _group(ranks)


def ranks_of(archive: Path) -> int:
    """Number of ranks that TorchServe starts for a worker of ``archive``; 1 if it says nothing of them."""
    if MODEL_CONFIG_FILE not in read_archive_listing(archive).files:
        return 1
    config = _parse(read_text(archive, MODEL_CONFIG_FILE), f"{archive}: {MODEL_CONFIG_FILE}")
    torchrun = config.get(_TORCHRUN)
    ranks = torchrun.get(_RANKS) if isinstance(torchrun, dict) else None
    return ranks if isinstance(ranks, int) and config.get(_PARALLEL) else 1


def _group(ranks: int) -> str:
    if ranks == 1:
        return ""
    lines = [
        (f"{_PARALLEL}: pp", "a worker is a group of ranks, and rank 0 has the requests"),
        (f"{_TORCHRUN}:", "which starts them"),
        (f"  {_RANKS}: {ranks}", "ranks of a worker"),
        ("  rdzv-backend: c10d", "how they find each other"),
        ("  rdzv-endpoint: localhost:0", "each group by a port of its own"),
    ]
    return "".join(f"{line}  # {meaning}\n" for line, meaning in lines)


def _parse(text: str, source: str) -> dict[str, Any]:
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ArchiveError(f"{source}: is not YAML: {error}") from None
    if not isinstance(found, dict):
        raise ArchiveError(f"{source}: is not a mapping of TorchServe's settings")
    return found

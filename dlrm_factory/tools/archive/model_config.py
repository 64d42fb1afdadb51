"""model-config.yaml: how TorchServe runs an archive's model, and with how many ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from dlrm_factory.config.declaration import DLRMDeclaration
from dlrm_factory.errors import ArchiveError
from dlrm_factory.tools.archive.listing import read_archive_listing, read_text

__all__ = ["MODEL_CONFIG_FILE", "group_of", "min_workers_of", "model_config", "with_ranks"]

MODEL_CONFIG_FILE = "model-config.yaml"
_HEAD = """\
# How TorchServe runs this model, from `serving` and `sharding` of declaration.yaml.
# What stands here wins over config.properties.
"""
_PARALLEL, _TORCHRUN, _RANKS, _HOSTS = "parallelType", "torchrun", "nproc-per-node", "hosts"
_START, _UNHEALTHY = "startupTimeout", "maxRetryTimeoutInSec"
# A leader waits for its hosts as long as it takes, and then limits the loading itself.
_HOSTS_COME_S = 30 * 24 * 3600
# TorchServe starts a worker again however long that fails; this is for its /ping alone.
_UNHEALTHY_S = 30
_HOSTS_COME = "s until all hosts are there; loading then has serving.startup_timeout_s"


def model_config(declaration: DLRMDeclaration) -> str:
    """The file's text: one key of TorchServe's a line, each with its meaning."""
    serving = declaration.serving
    lines: list[tuple[str, int | str, str]] = [
        ("minWorkers", serving.min_workers, "worker processes at start"),
        ("maxWorkers", serving.max_workers, "the most workers TorchServe keeps until it is scaled"),
        ("batchSize", serving.batch_requests, "the most requests handed to a worker at once"),
        ("maxBatchDelay", serving.batch_delay_ms, "ms a batch's first request waits for others"),
        ("responseTimeout", serving.response_timeout_s, "s until a batch fails and its worker is restarted"),
        (_START, serving.startup_timeout_s, "s a worker may take to load the model"),
        (
            "deviceType",
            "gpu" if declaration.sharding.device == "cuda" else "cpu",
            "where the model is computed",
        ),
    ]
    sharding = declaration.sharding
    if sharding.hosts > 1:
        lines = [line if line[0] != _START else (_START, _HOSTS_COME_S, _HOSTS_COME) for line in lines]
        lines.append((_UNHEALTHY, _UNHEALTHY_S, "s after which /ping tells of a group that is not back"))
    text = _HEAD + "".join(f"{key}: {value}  # {meaning}\n" for key, value, meaning in lines)
    return text + _group(sharding.local_world_size, sharding.hosts)


def with_ranks(text: str, ranks: int, *, hosts: int = 1, startup_timeout_s: int = 600) -> str:
    """``text`` of a model-config.yaml, for groups of ``ranks`` ranks; 1 for a worker of one process.

    Args:
        hosts: that the ranks are on, equally many on each.
        startup_timeout_s: of a group on one host, where ``text`` is for several.
    """
    config = _parse(text, MODEL_CONFIG_FILE)
    kept = {key: value for key, value in config.items() if key not in (_PARALLEL, _TORCHRUN, _HOSTS)}
    if hosts > 1:
        kept |= {_START: _HOSTS_COME_S, _UNHEALTHY: _UNHEALTHY_S}
    elif config.get(_HOSTS, 1) != 1:
        kept[_START] = startup_timeout_s
        kept.pop(_UNHEALTHY, None)
    return _HEAD + yaml.safe_dump(kept, sort_keys=False) + _group(ranks // hosts, hosts)


def group_of(archive: Path) -> tuple[int, int]:
    """Ranks of a worker of ``archive`` in all, and hosts that they are on; (1, 1) if it says nothing of them."""
    if MODEL_CONFIG_FILE not in read_archive_listing(archive).files:
        return 1, 1
    config = _parse(read_text(archive, MODEL_CONFIG_FILE), f"{archive}: {MODEL_CONFIG_FILE}")
    torchrun = config.get(_TORCHRUN)
    ranks = torchrun.get(_RANKS) if isinstance(torchrun, dict) else None
    local = ranks if isinstance(ranks, int) and config.get(_PARALLEL) else 1
    hosts = config.get(_HOSTS, 1)
    hosts = hosts if isinstance(hosts, int) and hosts > 1 else 1
    return local * hosts, hosts


def min_workers_of(archive: Path) -> int:
    """Workers that ``archive`` asks for at least; 1 if it says nothing of them."""
    if MODEL_CONFIG_FILE not in read_archive_listing(archive).files:
        return 1
    config = _parse(read_text(archive, MODEL_CONFIG_FILE), f"{archive}: {MODEL_CONFIG_FILE}")
    found = config.get("minWorkers", 1)
    return found if isinstance(found, int) else 1


def _group(local: int, hosts: int) -> str:
    """``local``: ranks on each of ``hosts``."""
    lines: list[tuple[str, str]] = []
    if local > 1:
        lines += [
            (f"{_PARALLEL}: pp", "a worker is a group of ranks, and rank 0 has the requests"),
            (f"{_TORCHRUN}:", "which starts them"),
            (f"  {_RANKS}: {local}", "ranks of a worker on this host"),
            ("  rdzv-backend: c10d", "how they find each other"),
        ]
    if hosts > 1:
        lines.append((f"{_HOSTS}: {hosts}", "hosts of a group, this one too; `dlrm join` brings the others"))
    return "".join(f"{line}  # {meaning}\n" for line, meaning in lines)


def _parse(text: str, source: str) -> dict[str, Any]:
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ArchiveError(f"{source}: is not YAML: {error}") from None
    if not isinstance(found, dict):
        raise ArchiveError(f"{source}: is not a mapping of TorchServe's settings")
    return found

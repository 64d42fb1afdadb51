"""One rank's part of sealed weights."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np
import torch
import torch.distributed as dist
import xxhash

from dlrm_factory.compiled import DirectLookup
from dlrm_factory.config.declaration import DLRMDeclaration
from dlrm_factory.errors import PlanError
from dlrm_factory.factory import DLRMFactory
from dlrm_factory.host.memory_limit import memory_limit
from dlrm_factory.model.hardware import hardware_of
from dlrm_factory.model.plan import TablePlan
from dlrm_factory.ranks.group import RankGroup
from dlrm_factory.scorer import Scorer
from dlrm_factory.weights.held_out import HELD_OUT_FILE
from dlrm_factory.weights.sealed import SealedWeights

__all__ = ["load_rank"]


def load_rank(weights: Path | SealedWeights, group: RankGroup, *, device: str | None = None) -> Scorer:
    """A scorer of this rank's part of sealed weights, for `RankedScorer` or `follow`; eager so far.

    Any number of ranks serves any archive, whatever it declares. On CPU every rank maps the one table file of its host
    and reads its tables, or its rows of them, in place; only column_wise shards are copied.

    PlanError if the tables do not fit, or ranks plan them differently.
    """
    sealed = SealedWeights(weights) if isinstance(weights, Path) else weights
    declared = sealed.declaration
    memory = _least_memory(declared, group, device)
    built = DLRMFactory(declared).build(weights=sealed, device=device, memory=memory, group=group.exchange)
    _check_plan(built.plan, group)
    sealed.tables.prepare_lookups(memory_limit())
    # For trying out compiled code, which each rank does alone.
    lookup = DirectLookup(declared, sealed.tables) if built.device.type == "cpu" else None
    is_bounded = (sealed.folder / HELD_OUT_FILE).is_file()
    return Scorer(built, lookup=lookup, vocabularies=sealed.vocabularies, is_bounded=is_bounded)


def _least_memory(declaration: DLRMDeclaration, group: RankGroup, device: str | None) -> int:
    """Bytes that the rank with the least memory has: all plan alike, and hosts may differ."""
    sharding = msgspec.structs.replace(
        declaration.sharding,
        device=device or declaration.sharding.device,
        world_size=group.size,
        hosts=group.hosts,
    )
    least = torch.tensor([hardware_of(sharding).memory])
    dist.all_reduce(least, op=dist.ReduceOp.MIN, group=group.data)
    return int(least)


def _check_plan(plan: TablePlan, group: RankGroup) -> None:
    """PlanError if a rank has another plan than the leader: each would look up in the wrong places."""
    text = json.dumps(plan.to_dict(), sort_keys=True, default=str)
    own = torch.from_numpy(np.frombuffer(xxhash.xxh3_128_digest(text.encode()), dtype=np.uint8).copy())
    found = [torch.empty_like(own) for _ in range(group.size)]
    dist.all_gather(found, own, group=group.data)
    others = [rank for rank, digest in enumerate(found) if not torch.equal(digest, found[0])]
    if others:
        raise PlanError(
            f"ranks {', '.join(map(str, others))} of {group.size} place the tables otherwise than the leader does; "
            "give all hosts the same packages, and declare sharding.memory"
        )

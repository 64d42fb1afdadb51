"""Golden requests through a group of ranks on this host."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from dlrm_factory.errors import WeightsError
from dlrm_factory.goldens import golden_batch, read_goldens
from dlrm_factory.ranks import RankedScorer, RankGroup, follow, load_rank
from dlrm_factory.requests.replay import replay_with
from dlrm_factory.scorer import EAGER_TOLERANCE, TOLERANCE
from dlrm_factory.tools.launch import launch
from dlrm_factory.weights.sealed import SealedWeights

__all__ = ["GroupReplay", "replay_in_group"]

# Ranks share this host's cores with whatever else runs here; only a rank that is gone should end the replay.
_TIMEOUT_S = 120.0


@dataclass(frozen=True, kw_only=True)
class GroupReplay:
    """Golden requests that a group reproduced.

    Fields:
        ranks: number of processes.
        requests: number of golden requests.
        largest: largest difference of a probability from what is expected, by engine.
        shardings: where each table went, such as ``row_wise``.
        rank_bytes: table bytes on each rank.
    """

    ranks: int
    requests: int
    largest: Mapping[str, float]
    shardings: Mapping[str, str]
    rank_bytes: list[int]


def replay_in_group(
    folder: Path, ranks: int, *, device: str | None = None, compiled: bool = True
) -> GroupReplay:
    """Ask the sealed weights in ``folder`` their golden requests, served by ``ranks`` new processes of this host.

    Args:
        device: ``cpu`` or ``cuda``; the declared one if None.
        compiled: with compiled dense parts too, unless the declaration forbids them.

    DLRMError if there are none, one is not reproduced, or a rank fails.
    """
    if read_goldens(folder) is None:
        raise WeightsError(f"{folder}: has no golden requests, so a group has nothing to reproduce")
    found = launch(_replay_rank, folder, device, compiled, processes=ranks)
    assert found is not None
    return found


def _replay_rank(folder: Path, device: str | None, compiled: bool) -> GroupReplay | None:
    # The ranks are all here, and their traffic is neither encrypted nor authenticated.
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    sealed = SealedWeights(folder)
    device = device or sealed.declaration.sharding.device
    group = RankGroup.join(device=device, timeout_s=_TIMEOUT_S)
    scorer = load_rank(sealed, group, device=device)
    serving = scorer.declaration.serving
    torch.set_num_threads(serving.threads)
    if group.rank:
        follow(scorer, group, folder=folder)
        return None
    goldens = read_goldens(folder)
    assert goldens is not None
    ranked = RankedScorer(scorer, group, on_loss=lambda _: None)
    try:
        largest = {"eager": replay_with(ranked, goldens, EAGER_TOLERANCE)}
        if compiled and serving.compile != "off":
            probes = [golden_batch(goldens, scorer.declaration, scorer.vocabularies)]
            ranked.compile(folder, probes=probes)
            if ranked.engine == "compiled":
                largest["compiled"] = replay_with(ranked, goldens, TOLERANCE[ranked.precision])
    finally:
        ranked.stop()
    plan = scorer.built.plan
    return GroupReplay(
        ranks=group.size,
        requests=len(goldens),
        largest=largest,
        shardings={table.name: table.sharding for table in plan.tables},
        rank_bytes=plan.rank_bytes(),
    )

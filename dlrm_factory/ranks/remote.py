"""A rank on another host than the leader's: ``python -m dlrm_factory.ranks.remote``, started by `dlrm join`.

Reads its place in the group, one line of JSON, from its standard input, and ends with its parent.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path

import torch

from dlrm_factory.config.trust import trust_code
from dlrm_factory.errors import DLRMError, GroupError
from dlrm_factory.host.process import TEMPORARY_FAILURE, end_with_parent
from dlrm_factory.ranks.follower import follow
from dlrm_factory.ranks.group import RankGroup
from dlrm_factory.ranks.loading import load_rank
from dlrm_factory.ranks.world import connect_store, use_interface
from dlrm_factory.weights.sealed import SealedWeights

__all__: list[str] = []

logger = logging.getLogger(__name__)


def _main() -> int:
    """Exit status: 0 if the leader says to stop, or nobody wants a rank."""
    end_with_parent(os.getppid())
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    for name in (
        "MethodLogger-NullHandler",
        "torchrec",
        "torch.fx",
    ):  # every planner call, with all its arguments
        logging.getLogger(name).setLevel(logging.ERROR)
    line = sys.stdin.readline()
    if not line:
        return 0
    given = json.loads(line)
    os.environ.update({name: str(value) for name, value in given["environment"].items()})
    try:
        use_interface(given["own_address"])
        trust_code(None)  # the archive that is served, as this file is its code
        weights = SealedWeights(Path(given["folder"]))
        sharding = weights.declaration.sharding
        store = connect_store(given["leader"], given["store_port"])
        group = RankGroup.join(device=sharding.device, timeout_s=sharding.timeout_s, store=store)
        scorer = load_rank(weights, group)
        torch.set_num_threads(scorer.declaration.serving.threads)
        follow(scorer, group, folder=weights.folder)
    except GroupError as error:
        logger.info("%s", error)  # as when the leader is stopped; `dlrm join` tells it in a line of its own
        return TEMPORARY_FAILURE
    except DLRMError as error:
        logger.error("%s", error)
        return TEMPORARY_FAILURE
    except Exception:
        logger.exception("Rank %s ends", os.environ.get("RANK"))
        return TEMPORARY_FAILURE
    return 0


if __name__ == "__main__":
    # Python's own way out may wait for ranks that are gone.
    status = _main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)

"""A leader without TorchServe: ``python -m support.leading FOLDER HOSTS``; scores a batch for each line it reads."""

from __future__ import annotations

import json
import logging
import sys
import time
from pathlib import Path

import torch

from dlrm_factory.errors import DLRMError
from handler.group import WorkerGroup
from support.batches import random_batch


def main() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("MethodLogger-NullHandler").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    group = WorkerGroup.join(Path(sys.argv[1]), model="dlrm", hosts=int(sys.argv[2]))
    ranked = group.lead()
    group.loaded()
    batch = random_batch(ranked.declaration, 30)
    while True:
        print(json.dumps(_ask(ranked, batch)), flush=True)
        if not sys.stdin.readline():
            return


def _ask(ranked, batch) -> dict[str, object]:
    started = time.monotonic()
    try:
        return {"logits": ranked.logits(batch).tolist(), "ranks": ranked.built.plan.to_dict()["world_size"]}
    except DLRMError as error:
        return {"error": f"{type(error).__name__}: {error}", "seconds": time.monotonic() - started}


if __name__ == "__main__":
    main()

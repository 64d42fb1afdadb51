"""``json.loads`` and the eager int8 model in one process, without HTTP: what a server is held against.

The module starts itself as ``python -m compare.in_process SEALED BODIES SECONDS``, which prints samples/s. One torch
thread.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from compare.eager import columns_to_batch
from compare.processes import child_environment
from dlrm_factory.batch import FeatureBatch
from dlrm_factory.config import DLRMDeclaration
from dlrm_factory.errors import WeightsError
from dlrm_factory.factory import DLRMFactory
from dlrm_factory.scorer import Scorer
from dlrm_factory.tools.bench.http.bodies import Body
from dlrm_factory.weights.sealed import SealedWeights

__all__ = ["in_process_sample_rate"]


def in_process_sample_rate(sealed: Path, bodies: Sequence[Body], seconds: float, scratch: Path) -> float:
    """Samples a second of columnar ``bodies``, in a process of its own. ``scratch``: a folder to write to."""
    file = scratch / "bodies.jsonl"
    file.write_bytes(b"\n".join(body.content for body in bodies))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", __name__, str(sealed), str(file), str(seconds)],
        capture_output=True,
        text=True,
        env=child_environment(),
    )
    if done.returncode:
        raise WeightsError(f"the model does not run in one process: {done.stderr.strip()[-500:]}")
    return float(done.stdout.split()[-1])


def _measure(sealed: Path, bodies: Sequence[bytes], seconds: float) -> float:
    torch.set_num_threads(1)
    weights = SealedWeights(sealed)
    scorer = Scorer(DLRMFactory(weights.declaration).build(weights=weights))
    for body in bodies[:4]:
        scorer.reference_logits(_batch(scorer.declaration, body))
    samples, turn, started = 0, 0, time.perf_counter()
    while time.perf_counter() < started + seconds:
        samples += len(scorer.reference_logits(_batch(scorer.declaration, bodies[turn % len(bodies)])))
        turn += 1
    return samples / (time.perf_counter() - started)


def _batch(declaration: DLRMDeclaration, body: bytes) -> FeatureBatch:
    return columns_to_batch(declaration, json.loads(body)["inputs"])


if __name__ == "__main__":
    rate = _measure(Path(sys.argv[1]), Path(sys.argv[2]).read_bytes().splitlines(), float(sys.argv[3]))
    sys.stdout.write(f"{rate}\n")

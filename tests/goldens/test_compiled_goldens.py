"""Compiled code that does not give the golden scores is not used, whatever else it gets right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from support.batches import random_state

import dlrm_factory.scorer as scorer_module
from dlrm_factory.batch import Embeddings
from dlrm_factory.compiled.dense_library import CompiledDense, TryOut
from dlrm_factory.config import ServingOptions, tiny
from dlrm_factory.goldens import add_goldens, golden_batch
from dlrm_factory.scorer import Scorer
from dlrm_factory.weights.checkpoint import open_checkpoint, save_checkpoint
from dlrm_factory.weights.sealed import seal_weights

DECLARATION = msgspec.structs.replace(tiny(), serving=ServingOptions(precision="fp32"))


@pytest.mark.parametrize("wrong", [True, False])
def test_the_golden_batch_is_a_probe(wrong: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path / "c.safetensors", DECLARATION, random_state(DECLARATION))
    seal_weights(open_checkpoint(tmp_path / "c.safetensors"), tmp_path / "sealed")
    goldens = golden_batch(add_goldens(tmp_path / "sealed"), DECLARATION, None)
    scorer = Scorer.load(tmp_path / "sealed")
    golden = torch.from_numpy(goldens.dense[-1])

    def package(dense: torch.Tensor, found: Embeddings) -> torch.Tensor:
        """Right for every sample but one golden one."""
        logits = torch.from_numpy(np.array(scorer._interact_eagerly(dense, found)))
        return torch.where((dense == golden).all(dim=1, keepdim=True) & wrong, logits + 1, logits)

    reasons: list[str | None] = []

    def compiled_dense(*args: Any, try_out: TryOut, **kwargs: Any) -> CompiledDense | None:
        reasons.append(try_out(package))
        return None if reasons[-1] else package

    monkeypatch.setattr(scorer_module, "compiled_dense", compiled_dense)
    scorer.compile(tmp_path / "sealed", probes=[goldens])
    assert scorer.engine == ("eager" if wrong else "compiled")
    assert [reason is not None and "Compiled scores differ" in reason for reason in reasons] == [wrong]

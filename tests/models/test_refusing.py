"""Modules that refuse, or cannot be trained, on the way from clicks to a worker."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from dlrm_factory import scorer as scorer_module
from dlrm_factory.config import DLRMDeclaration, ModuleArchitecture, tiny
from dlrm_factory.config.trust import TRUST_VARIABLE, trust_code
from dlrm_factory.errors import DataError, ModuleError, WeightsError
from dlrm_factory.goldens import add_goldens
from dlrm_factory.scorer import Scorer
from dlrm_factory.tools.bench.score import RandomWeights
from dlrm_factory.tools.training import train
from dlrm_factory.weights.sealed import seal_weights

NET = """
import torch
from torch import nn
from dlrm_factory import RequestError

class Net(nn.Module):
    def __init__(self, inputs):
        super().__init__()
        self.last = nn.Linear(len(inputs.dense) + sum(inputs.pooled.values()), 1)

    def forward(self, dense, pooled_by_name):
        if REFUSED:
            raise RequestError('sparse feature "user_id": is empty; send an id')
        return RETURNED(self.last(torch.cat((dense, *pooled_by_name.values()), dim=1)).squeeze(1))
"""


@pytest.fixture(autouse=True)
def _forget_trust(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TRUST_VARIABLE, os.environ.get(TRUST_VARIABLE, ""))


def declared(*, refused: str = "False", returned: str = "") -> DLRMDeclaration:
    code = NET.replace("REFUSED", refused).replace("RETURNED", returned)
    found = msgspec.structs.replace(
        tiny(),
        architecture=ModuleArchitecture(module="net.py:Net", sources={"net.py": code}),
        dense_arch_layer_sizes=None,
        over_arch_layer_sizes=None,
    )
    trust_code(found)
    return found


# An empty bag pools to zeros.
EMPTY = '(pooled_by_name["user_id"] == 0).all(dim=1).any()'


@pytest.mark.parametrize("refused", [EMPTY, "not self.training"], ids=["training", "held out"])
def test_training_ends_at_a_row_that_is_refused(tmp_path: Path, refused: str) -> None:
    with pytest.raises(
        DataError, match=r'^the module refuses a row of the data: sparse feature "user_id": is'
    ):
        train(declared(refused=refused), output=tmp_path / "c.safetensors", rows=600)
    assert not (tmp_path / "c.safetensors").exists()


def test_golden_requests_and_probes_that_are_refused_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Weights that are not 0 anywhere, so that only empty bags are.
    whole, some = (RandomWeights(declared(refused=refused)) for refused in ("False", EMPTY))
    counts = {}
    for name, weights in (("whole", whole), ("some", some)):
        seal_weights(weights, tmp_path / name)
        counts[name] = [bytes(golden.request) for golden in add_goldens(tmp_path / name).requests]
    assert len(counts["whole"]) == 16
    kept = [
        request for request in counts["whole"] if b'"user_id":[]' not in request and b"user_id" in request
    ]
    assert counts["some"] == kept
    assert 3 <= len(kept) < 16
    # A worker starts all the same.
    scorer = Scorer.load(tmp_path / "some")
    probed = []
    monkeypatch.setattr(scorer_module, "compiled_dense", lambda *_, try_out, **__: probed.append(try_out))
    scorer.compile(tmp_path / "some")
    assert len(probed) == 1


def test_a_module_that_refuses_everything_is_told(tmp_path: Path) -> None:
    seal_weights(RandomWeights(declared(refused="True")), tmp_path)
    with pytest.raises(WeightsError, match=r'every golden request, such as: sparse feature "user_id"'):
        add_goldens(tmp_path)


def test_outputs_without_a_gradient_cannot_be_trained(tmp_path: Path) -> None:
    with pytest.raises(
        ModuleError, match=r"^net\.py:Net: what forward returns depends on no weight.*detached"
    ):
        train(declared(returned="torch.detach"), output=tmp_path / "c.safetensors", rows=600)

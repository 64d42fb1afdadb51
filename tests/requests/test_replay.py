"""A service that does not give the golden scores is found out, alone and in a batch."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
from support.batches import random_state
from support.one_output import one_output

from dlrm_factory.batch import FeatureBatch
from dlrm_factory.config import ServingOptions, tiny
from dlrm_factory.errors import WeightsError
from dlrm_factory.goldens import Goldens, add_goldens
from dlrm_factory.requests.replay import replay, replay_with
from dlrm_factory.requests.service import DLRMService
from dlrm_factory.scorer import EAGER_TOLERANCE, Scorer
from dlrm_factory.weights.checkpoint import open_checkpoint, save_checkpoint
from dlrm_factory.weights.sealed import seal_weights


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("replay")
    serving = ServingOptions(compile="off", batch_size=40)
    declaration = msgspec.structs.replace(tiny(), serving=serving)
    save_checkpoint(folder / "c.safetensors", declaration, random_state(declaration))
    seal_weights(open_checkpoint(folder / "c.safetensors"), folder / "sealed")
    return folder / "sealed"


@pytest.fixture(scope="module")
def goldens(sealed: Path) -> Goldens:
    return add_goldens(sealed)


class Spoilt:
    """A scorer whose logits of some batches are ``off`` by a little."""

    def __init__(self, scorer: Scorer, off: float, *, least_batch: int = 0, least_row: int = 0) -> None:
        self.declaration = scorer.declaration
        self.sizes: list[int] = []
        self._scorer, self._off, self._least = scorer, off, (least_batch, least_row)

    @one_output
    def outputs(self, batch: FeatureBatch, shared: object = None) -> np.ndarray:
        self.sizes.append(len(batch))
        wrong = len(batch) >= self._least[0] and batch.values.max(initial=0) >= self._least[1]
        return self._scorer.logits(batch) + np.float32(self._off if wrong else 0)


def test_a_good_service_reproduces_them(sealed: Path, goldens: Goldens) -> None:
    assert replay_with(Scorer.load(sealed), goldens, EAGER_TOLERANCE) < 1e-5


def test_each_is_asked_alone_and_in_the_largest_batch(sealed: Path, goldens: Goldens) -> None:
    scorer = Spoilt(Scorer.load(sealed), 0)
    replay(DLRMService(scorer), goldens, EAGER_TOLERANCE)
    assert scorer.sizes == [1] * len(goldens) + [40]


@pytest.mark.parametrize(
    ("spoilt", "message"),
    [
        (
            {"off": 0.01},
            r"golden request 1 of 16 \(alone\) gives 0\.\d+, but 0\.\d+ is expected \(within 0\.0001\)",
        ),
        ({"off": 0.01, "least_batch": 2}, r"golden request 1 of 16 \(in a batch of 40\) gives"),
        ({"off": 0.01, "least_row": 199}, r"golden request \d+ of 16 \(alone\) gives .*\"item_id\":199"),
        ({"off": float("nan")}, r"golden request 1 of 16 \(alone\) is answered 500 .*not a finite number"),
    ],
)
def test_a_difference_is_one_clear_message(
    sealed: Path, goldens: Goldens, spoilt: dict[str, float], message: str
) -> None:
    service = DLRMService(Spoilt(Scorer.load(sealed), **spoilt))
    with pytest.raises(WeightsError, match=message):
        replay(service, goldens, EAGER_TOLERANCE)


def test_a_request_that_is_refused_is_told(sealed: Path) -> None:
    bad = {"requests": [{"request": {"instances": [{"item_id": 200}]}, "expected": 0.5}]}
    goldens = msgspec.json.decode(msgspec.json.encode(bad), type=Goldens)
    with pytest.raises(WeightsError, match=r"is answered 400 .*id 200 is out of range"):
        replay_with(Scorer.load(sealed), goldens, EAGER_TOLERANCE)

"""A group of ranks scores as one process does, and goes on after a rank's error."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
from support import ranked
from support.batches import random_batch, random_state
from support.nets import trusted
from support.processes import end_of, ranks
from support.sharding import TOLERANCE, mixed_shardings

from dlrm_factory.errors import PlanError
from dlrm_factory.factory import DLRMFactory
from dlrm_factory.goldens import add_goldens
from dlrm_factory.model.hardware import Hardware
from dlrm_factory.ranks import RankGroup, load_rank
from dlrm_factory.ranks.traffic import plan_traffic
from dlrm_factory.scorer import Scorer
from dlrm_factory.tools.bench.score import RandomWeights
from dlrm_factory.weights.sealed import seal_weights

pytestmark = pytest.mark.multiprocess


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sealed")
    declaration = mixed_shardings()
    serving = msgspec.structs.replace(declaration.serving, precision="fp32")
    seal_weights(RandomWeights(msgspec.structs.replace(declaration, serving=serving)), folder)
    add_goldens(folder)
    return folder


@pytest.fixture(scope="module")
def found(sealed: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """Reports of the leaders of groups of 2, 3 and 4 ranks."""
    out = tmp_path_factory.mktemp("found")
    for size in ranked.SIZES:
        with ranks(ranked.score_all, out, sealed, size=size) as processes:
            assert end_of(processes, within_s=100) == [0] * size
    return {path.stem: json.loads(path.read_text()) for path in out.glob("*.json")}


def assert_close(one: list[list[float]], other: list[list[float]], tolerance: float = TOLERANCE) -> None:
    assert len(one) == len(other)
    for first, second in zip(one, other, strict=True):
        np.testing.assert_allclose(first, second, rtol=0, atol=tolerance)


def alone(declaration) -> Scorer:
    return Scorer(DLRMFactory(declaration).build(weights=random_state(declaration)))


@pytest.mark.parametrize("size", ranked.SIZES)
def test_ranks_equal_one_process(found: dict[str, dict], size: int) -> None:
    cases = dict(ranked.cases(size))
    assert len(cases) == 18
    spread = []
    for name, declaration in cases.items():
        expected = ranked.score_cases(alone(declaration), size)
        assert_close(found[str(size)][name], expected)
        assert_close(found[str(size)][f"{name}, spread"], expected)
        # Where all tables are replicated, the leader needs nobody for a small batch.
        sharding, sent = name.split("-")[0], found[str(size)][f"{name}, sent"]
        if sharding != "auto":
            assert (sent == 0) == (sharding == "data_parallel")
        spread.append(np.ptp(expected[2]))
    # So that another sample's score, or another row's, would show.
    assert min(spread) > 1000 * TOLERANCE


def test_a_model_with_sequences_is_refused_by_name(tmp_path: Path) -> None:
    seal_weights(RandomWeights(trusted("din")), tmp_path)
    with pytest.raises(PlanError, match=r"sequence features \(item, history\) .* sharding\.world_size to 1"):
        load_rank(tmp_path, RankGroup.join(timeout_s=60))


@pytest.mark.parametrize("size", ranked.SIZES)
def test_batches_without_samples_and_of_more_than_512(found: dict[str, dict], size: int) -> None:
    expected = ranked.score_large(alone(mixed_shardings()))
    assert [len(logits) for logits in expected] == [0, 700, 2048]
    assert_close(found[str(size)]["large"], expected)


@pytest.mark.parametrize("size", ranked.SIZES)
def test_vectors_cross_in_bfloat16(found: dict[str, dict], size: int) -> None:
    declaration = mixed_shardings()
    expected = alone(declaration).logits(random_batch(declaration, 48, seed=10))
    answers = found[str(size)]["bf16"]
    difference = np.abs(np.array(answers["logits"]) - expected).max()
    assert TOLERANCE < difference < 2e-2
    wide, narrow = answers["sent"]
    plan = DLRMFactory(declaration).plan(hardware=Hardware(world_size=size, memory=1 << 30))
    saved = [plan_traffic(plan, declaration, pooled_bytes=width).pooled for width in (4, 2)]
    assert wide - narrow == pytest.approx(48 * (saved[0] - saved[1]))


def numbers(value: object) -> list[float]:
    """All numbers of an answer, in order."""
    if isinstance(value, dict):
        return [number for each in value.values() for number in numbers(each)]
    if isinstance(value, list):
        return [number for each in value for number in numbers(each)]
    return [float(value)] if isinstance(value, (int, float)) else []


@pytest.mark.parametrize("size", ranked.SIZES)
def test_requests_rankings_and_explanations(found: dict[str, dict], size: int) -> None:
    expected = ranked.ask_service(alone(mixed_shardings()))
    answers = found[str(size)]["service"]
    assert [list(answer) for answer in answers] == [list(answer) for answer in expected]
    assert len(numbers(expected)) > 30
    np.testing.assert_allclose(numbers(answers), numbers(expected), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("size", ranked.SIZES)
def test_sealed_weights_under_any_number_of_ranks(found: dict[str, dict], sealed: Path, size: int) -> None:
    answers = found[str(size)]
    expected = ranked.score_cases(Scorer.load(sealed), size)
    assert_close(answers["sealed"], expected)
    assert answers["eager"] <= TOLERANCE
    # The leader's: rows of the first, columns of the second, all of the third.
    assert answers["in_place"] == {"t_user_id": True, "t_item_id": False, "t_item_tags": True}
    assert answers["engine"] == "compiled"
    assert_close(answers["compiled"], expected)


@pytest.mark.parametrize("size", ranked.SIZES)
def test_an_error_of_a_rank_fails_its_batch_alone(found: dict[str, dict], size: int) -> None:
    answers = found[str(size)]["errors"]
    dense, ids, lookup, silent = answers["told"]
    assert (
        dense == f"RankError: rank {size - 1} of {size} failed: DLRMError: the dense parts are out of order"
    )
    assert ids.startswith("ValueError: id -1 is outside its table of ")
    assert lookup == f"RankError: rank {size - 1} of {size} failed: MemoryError: no memory for the lookup"
    # A rank that scores nothing does not answer.
    assert silent == lookup
    # The user's own module fails as in one process.
    assert answers["of_module"] == [
        f"{type(error).__name__}: {error}" for error in ranked.OF_MODULES.values()
    ]
    assert answers["unknown"]
    assert answers["after"] == answers["before"]


@pytest.mark.parametrize("how", ["killed", "stopped", "between", "leader"])
def test_a_lost_rank_ends_the_group(tmp_path: Path, how: str) -> None:
    with ranks(ranked.lose_a_rank, tmp_path, how, size=3) as processes:
        if how == "leader":
            assert end_of(processes, within_s=60) == [-9, 1, 1]
            return
        assert end_of(processes[:2], within_s=60) == [75, 1]
        if how == "killed":
            assert end_of(processes[2:], within_s=5) == [-9]
    found = json.loads((tmp_path / f"{how}.json").read_text())
    first, second = found["told"]
    assert first.startswith(
        "a rank of the group of 3 is gone, or did not answer within 3 s; send the request"
    )
    assert second == first
    assert found["seconds"] < ranked.TIMEOUT_S + 10
    assert found["status"] == 503
    assert found["answer"]["type"] == "GroupLost"

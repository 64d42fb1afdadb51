"""A group of ranks scores as one process does, and goes on after a rank's error."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
from support import ranked
from support.batches import random_batch, random_state
from support.processes import end_of, ranks
from support.sequences import even_batch, ordered
from support.sharding import TOLERANCE, mixed_shardings

from dlrm_factory.errors import RequestError
from dlrm_factory.factory import DLRMFactory
from dlrm_factory.goldens import add_goldens
from dlrm_factory.model.hardware import Hardware
from dlrm_factory.ranks.layout import layout_of
from dlrm_factory.ranks.step import error_of, reason_of, telling_rank
from dlrm_factory.ranks.traffic import plan_traffic
from dlrm_factory.scorer import Scorer
from dlrm_factory.tools.bench.score import RandomWeights
from dlrm_factory.weights.sealed import seal_weights

pytestmark = pytest.mark.multiprocess


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sealed weights of a model of pooled tables, ``mixed``, and of one with ``sequences``."""
    folder = tmp_path_factory.mktemp("sealed")
    shardings = ("row_wise", "column_wise", "table_wise", "data_parallel")
    for name, declaration in (("mixed", mixed_shardings()), ("sequences", ordered(shardings))):
        serving = msgspec.structs.replace(declaration.serving, precision="fp32")
        seal_weights(RandomWeights(msgspec.structs.replace(declaration, serving=serving)), folder / name)
        add_goldens(folder / name)
    return folder


@pytest.fixture(scope="module")
def found(sealed: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """Reports of the leaders of groups of 2, 3 and 4 ranks."""
    out = tmp_path_factory.mktemp("found")
    for size in ranked.SIZES:
        with ranks(ranked.score_all, out, sealed, size=size) as processes:
            assert end_of(processes, within_s=200) == [0] * size
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
    assert len(cases) == 37 + size % 2
    spread: dict[str, float] = {}
    for name, declaration in cases.items():
        expected = ranked.score_cases(alone(declaration), size)
        assert_close(found[str(size)][name], expected)
        assert_close(found[str(size)][f"{name}, spread"], expected)
        # Where all tables are replicated, the leader needs nobody for a small batch.
        sent = found[str(size)][f"{name}, sent"]
        if "auto" not in name:
            assert (sent == 0) == ("data_parallel" in name)
        spread[name] = np.ptp(expected[2])
    # So that another sample's score, or another row's, would show.
    assert min(spread.values()) > 1000 * TOLERANCE, spread


@pytest.mark.parametrize("size", ranked.SIZES)
def test_each_step_of_a_sequence_crosses_once_at_most(found: dict[str, dict], size: int) -> None:
    sequences = {name: d for name, d in ranked.cases(size) if name.startswith("sequences")}
    assert len(sequences) == 13 + size % 2
    for name, declaration in sequences.items():
        batch = even_batch(declaration, size)
        ids = batch.lengths[:, 0].tolist()
        plan = DLRMFactory(declaration).plan(hardware=Hardware(world_size=size, memory=1 << 30))
        looks_up = [bool(part.streams) for part in layout_of(plan, declaration).ranks[1:]]
        for sent, shares in zip(
            found[str(size)][f"{name}, bytes"], ([1 / size] * size, [1, *[0] * (size - 1)]), strict=True
        ):
            least = len(batch) * plan_traffic(plan, declaration, ids_a_bag=ids, shares=shares).total
            # Beside them the start of a message, the rows of each slice and the steps, and that of an answer.
            scores = [share > 0 for share in shares[1:]]
            told = sum(looks or score for looks, score in zip(looks_up, scores, strict=True))
            heads = told * (40 + 4 * size + 4) + 16 * sum(scores)
            assert heads - 0.01 <= sent - least < heads + 4 * size, name


@pytest.mark.parametrize("name", ranked.MORE_ASKED)
@pytest.mark.parametrize("size", ranked.SIZES)
def test_batches_without_samples_and_of_more_than_512(found: dict[str, dict], size: int, name: str) -> None:
    expected = ranked.score_large(alone(dict(ranked.cases(size))[name]))
    assert [len(logits) for logits in expected] == [0, 700, 2048]
    assert_close(found[str(size)][f"{name}, large"], expected)


@pytest.mark.parametrize("size", ranked.SIZES)
def test_vectors_cross_in_bfloat16(found: dict[str, dict], size: int) -> None:
    declaration = mixed_shardings()
    expected = alone(declaration).logits(random_batch(declaration, 48, seed=10))
    answers = found[str(size)]["mixed, bf16"]
    difference = np.abs(np.array(answers["logits"]) - expected).max()
    assert TOLERANCE < difference < 2e-2
    wide, narrow = answers["sent"]
    plan = DLRMFactory(declaration).plan(hardware=Hardware(world_size=size, memory=1 << 30))
    saved = [plan_traffic(plan, declaration, number_bytes=width).pooled for width in (4, 2)]
    assert wide - narrow == pytest.approx(48 * (saved[0] - saved[1]))


@pytest.mark.parametrize("size", ranked.SIZES)
def test_vectors_of_sequences_cross_in_bfloat16(found: dict[str, dict], size: int) -> None:
    declaration = dict(ranked.cases(size))["sequences-mixed-1"]
    expected = alone(declaration).logits(random_batch(declaration, 48, seed=10))
    answers = found[str(size)]["sequences-mixed-1, bf16"]
    assert TOLERANCE < np.abs(np.array(answers["logits"]) - expected).max() < 2e-2
    wide, narrow = answers["sent"]
    assert narrow < 0.7 * wide


def numbers(value: object) -> list[float]:
    """All numbers of an answer, in order."""
    if isinstance(value, dict):
        return [number for each in value.values() for number in numbers(each)]
    if isinstance(value, list):
        return [number for each in value for number in numbers(each)]
    return [float(value)] if isinstance(value, (int, float)) else []


@pytest.mark.parametrize("name", ranked.MORE_ASKED)
@pytest.mark.parametrize("size", ranked.SIZES)
def test_requests_rankings_and_explanations(found: dict[str, dict], size: int, name: str) -> None:
    expected = ranked.ask_service(alone(dict(ranked.cases(size))[name]))
    answers = found[str(size)][f"{name}, service"]
    assert [list(answer) for answer in answers] == [list(answer) for answer in expected]
    assert len(numbers(expected)) > 30
    np.testing.assert_allclose(numbers(answers), numbers(expected), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("size", ranked.SIZES)
def test_sealed_weights_under_any_number_of_ranks(found: dict[str, dict], sealed: Path, size: int) -> None:
    answers = found[str(size)]
    expected = ranked.score_cases(Scorer.load(sealed / "mixed"), size)
    assert_close(answers["sealed"], expected)
    assert answers["eager"] <= TOLERANCE
    # The leader's: rows of the first, columns of the second, all of the third.
    assert answers["in_place"] == {"t_user_id": True, "t_item_id": False, "t_item_tags": True}
    assert answers["engine"] == "compiled"
    assert_close(answers["compiled"], expected)


@pytest.mark.parametrize("size", ranked.SIZES)
def test_sealed_sequences_under_any_number_of_ranks(found: dict[str, dict], sealed: Path, size: int) -> None:
    answers = found[str(size)]["sequences"]
    expected = ranked.score_cases(Scorer.load(sealed / "sequences"), size)
    assert_close(answers["sealed"], expected)
    assert answers["eager"] <= TOLERANCE
    # The leader's: rows of one, all of the other; columns, if it has some, are copied.
    in_place = answers["in_place"]
    assert (in_place["t_item"], in_place["t_tags"]) == (True, True)
    assert not in_place.get("t_category")
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
    assert answers["of_module"] == [reason_of(error) for error in ranked.OF_MODULES.values()]
    assert answers["unknown"]
    assert answers["after"] == answers["before"]


def test_a_ranks_own_failure_is_told_before_a_refusal_of_the_module() -> None:
    refusal, failure = reason_of(RequestError("no", "$.price")), reason_of(MemoryError("no memory"))
    assert telling_rank({0: refusal, 1: failure, 2: failure}) == 1
    assert telling_rank({2: refusal, 1: refusal}) == 1
    assert str(error_of(refusal)) == "no"
    assert error_of(failure) is None


@pytest.mark.parametrize("size", ranked.SIZES)
def test_an_error_of_a_lookup_of_sequences_fails_its_batch_alone(found: dict[str, dict], size: int) -> None:
    answers = found[str(size)]["sequence errors"]
    assert answers["told"] == [f"rank {size - 1} of {size} failed: MemoryError: no memory for the lookup"] * 2
    assert answers["after"] == answers["before"]


@pytest.mark.parametrize("how", ["killed", "stopped", "between", "leader", "sequences"])
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

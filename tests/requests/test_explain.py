from __future__ import annotations

import json
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.batches import random_batch, random_state
from support.handed import handle
from support.one_output import one_output

from dlrm_factory.batch import FeatureBatch
from dlrm_factory.config import ServingOptions, tiny
from dlrm_factory.factory import DLRMFactory
from dlrm_factory.features import FeatureEncoder
from dlrm_factory.requests.explain import without_each_feature
from dlrm_factory.requests.service import DLRMService
from dlrm_factory.scorer import Scorer

EXPLAIN = {"explain": "True"}
PREDICT = {"explain": "False"}
NAMES = ["price", "age_days", "user_id", "item_id", "item_tags"]


@pytest.fixture
def wide(scorer: Any) -> DLRMService:
    """The hand-checkable scorer: logit = price + item_id / 100 + (sum of item_tags) / 10."""
    scorer.declaration = msgspec.structs.replace(tiny(), serving=ServingOptions(max_samples=24))
    return DLRMService(scorer)


def ask(service: DLRMService, *bodies: Any, headers: Any = None) -> list[tuple[int, Any]]:
    requests = [{"body": json.dumps(body).encode()} for body in bodies]
    answers = handle(service, requests, headers or [EXPLAIN] * len(bodies))
    return [(answer.status, json.loads(answer.body)) for answer in answers]


def test_contributions_by_hand(wide: DLRMService) -> None:
    rows = [{"price": 1, "item_id": 20, "item_tags": [3, 4], "user_id": "u"}, {"price": 2}]
    ((status, content),) = ask(wide, {"instances": rows, "output": "logit"})
    assert status == 200
    assert content["explanations"] == [
        {
            "score": pytest.approx(1.9),
            "contributions": pytest.approx(
                {"price": 1, "age_days": 0, "user_id": 0, "item_id": 0.2, "item_tags": 0.7}, abs=1e-6
            ),
        },
        {"score": 2.0, "contributions": {"price": 2.0, **dict.fromkeys(NAMES[1:], 0.0)}},
    ]


def test_probabilities_are_compared_as_asked(wide: DLRMService) -> None:
    ((_, content),) = ask(wide, {"inputs": {"price": [1]}})
    (one,) = content["explanations"]
    assert one["score"] == pytest.approx(1 / (1 + np.exp(-1)), abs=1e-6)
    assert one["contributions"]["price"] == pytest.approx(one["score"] - 0.5, abs=1e-6)


UPSTREAM = {
    "float_features": [1, 0],
    "id_list_features.lengths": [0, 1, 0],
    "id_list_features.values": [20],
    "output": "logit",
}
TENSORS = {
    "inputs": [
        {"name": "price", "shape": [1], "datatype": "FP32", "data": [1]},
        {"name": "item_id", "shape": [1], "datatype": "INT64", "data": [20]},
    ],
    "parameters": {"output": "logit"},
}
COLUMNS = {"inputs": {"price": [1], "item_id": [20]}, "output": "logit"}
RANKING = {"context": {"price": 1}, "candidates": [{"id": "x", "item_id": 20}], "output": "logit"}


@pytest.mark.parametrize("body", [UPSTREAM, TENSORS, COLUMNS, RANKING])
def test_every_shape_can_be_explained(wide: DLRMService, body: Any) -> None:
    ((status, content),) = ask(wide, body)
    assert status == 200, content
    (one,) = content["explanations"]
    assert one["contributions"] == pytest.approx(
        {"price": 1, "age_days": 0, "user_id": 0, "item_id": 0.2, "item_tags": 0}, abs=1e-6
    )
    assert one["score"] == pytest.approx(1.2)


def test_a_ranking_is_explained_best_first(wide: DLRMService) -> None:
    body = {
        "context": {"item_tags": [5]},
        "candidates": {"id": ["a", "b", None], "item_id": [1, 3, 2]},
        "top_k": 2,
        "output": "logit",
    }
    ((_, content),) = ask(wide, body)
    found = [(e.get("id"), e["index"], e["score"]) for e in content["explanations"]]
    assert found == [("b", 1, 0.53), (None, 2, 0.52)]
    for entry in content["explanations"]:
        assert entry["contributions"]["item_tags"] == pytest.approx(0.5)


def test_predictions_and_explanations_in_one_batch(wide: DLRMService, scorer: Any) -> None:
    bodies = [COLUMNS, COLUMNS, {"instances": "x"}, {**RANKING, "top_k": 1}]
    headers = [EXPLAIN, PREDICT, EXPLAIN, {}]
    together = ask(wide, *bodies, headers=headers)
    assert len(scorer.batches) == 1  # one forward for all
    assert [status for status, _ in together] == [200, 200, 400, 200]
    assert [next(iter(content)) for _, content in together] == [
        "explanations",
        "predictions",
        "code",
        "ranking",
    ]
    alone = [ask(wide, body, headers=[header])[0] for body, header in zip(bodies, headers, strict=True)]
    assert together == alone


def test_no_samples(wide: DLRMService) -> None:
    for body in ({"instances": []}, {"candidates": []}, {"inputs": {"price": []}}):
        assert ask(wide, body) == [(200, {"explanations": []})]


def test_too_many_samples_to_explain(wide: DLRMService) -> None:
    assert ask(wide, {"instances": [{}] * 4})[0][0] == 200
    ((status, content),) = ask(wide, {"instances": [{}] * 5})
    assert (status, content["type"]) == (413, "LimitError")
    assert "explaining 5 samples of 5 features scores 30 samples, over max_samples 24" in content["message"]
    assert "send at most 4 samples" in content["message"]


def test_a_score_that_overflows_has_the_path_of_its_sample(
    wide: DLRMService, scorer: Any, monkeypatch: Any
) -> None:
    def overflow(batch: Any, shared: Any = None) -> np.ndarray:
        # Only without item_id, in the copy of the second sample.
        return np.where((batch.dense[:, 0] > 10) & (batch.lengths[1] == 0), np.nan, 0).astype(np.float32)

    monkeypatch.setattr(scorer, "outputs", one_output(overflow))
    rows = [{"price": 1}, {"price": 3e38, "item_id": 1}]
    ((status, content),) = ask(wide, {"instances": rows})
    assert (status, content["path"]) == (400, "$.instances[1].price")


@given(size=st.integers(0, 4), seed=st.integers(0, 99))
def test_without_each_feature_one_by_one(size: int, seed: int) -> None:
    batch = random_batch(tiny(), size, seed=seed)
    blank = FeatureEncoder(tiny()).encode({}, 1)
    many = without_each_feature(batch, blank)
    assert len(many) == 6 * size
    for copy in range(6):
        part = slice_of(many, copy * size, (copy + 1) * size)
        dense, lengths = batch.dense.copy(), batch.lengths.copy()
        keep = np.ones(len(batch.values), dtype=bool)
        if 1 <= copy <= 2:
            dense[:, copy - 1] = blank.dense[0, copy - 1]
        if copy > 2:
            lengths[copy - 3] = 0
            keep = np.repeat(np.arange(3) != copy - 3, batch.lengths.sum(axis=1))
        np.testing.assert_array_equal(part.dense, dense)
        np.testing.assert_array_equal(part.lengths, lengths)
        np.testing.assert_array_equal(part.values, batch.values[keep])


def slice_of(batch: FeatureBatch, start: int, stop: int) -> FeatureBatch:
    ends = np.cumsum(batch.lengths).reshape(batch.lengths.shape)
    firsts = ends - batch.lengths
    values = [
        batch.values[a:b]
        for f in range(len(ends))
        for a, b in zip(firsts[f, start:stop], ends[f, start:stop], strict=True)
    ]
    return FeatureBatch(
        dense=batch.dense[start:stop],
        lengths=batch.lengths[:, start:stop],
        values=np.concatenate([np.empty(0, dtype=np.int64), *values]),
    )


def test_a_real_models_contributions_are_differences_of_its_scores() -> None:
    declaration = tiny()
    service = DLRMService(Scorer(DLRMFactory(declaration).build(weights=random_state(declaration))))
    row = {"price": 2.5, "age_days": 3, "user_id": "u17", "item_id": 12, "item_tags": [3, 9]}
    left_out = [{name: row[name] for name in row if name != gone} for gone in NAMES]
    body = {"instances": [row], "output": "logit"}
    ((_, explained),) = ask(service, body)
    ((_, predicted),) = ask(service, {**body, "instances": [row, *left_out]}, headers=[PREDICT])
    whole, *others = predicted["predictions"]
    (one,) = explained["explanations"]
    assert one["score"] == pytest.approx(whole, abs=1e-5)
    expected = {name: whole - other for name, other in zip(NAMES, others, strict=True)}
    assert one["contributions"] == pytest.approx(expected, abs=1e-5)
    assert all(abs(gain) > 1e-4 for gain in one["contributions"].values())

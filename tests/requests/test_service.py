from __future__ import annotations

import json
import logging
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.depth import examples
from support.handed import handle
from support.one_output import one_output

from dlrm_factory.config import tiny
from dlrm_factory.factory import DLRMFactory
from dlrm_factory.requests.answers import Answer
from dlrm_factory.requests.service import DLRMService
from dlrm_factory.scorer import Scorer

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
NUMBER = st.one_of(st.none(), st.integers(-1000, 1000), st.floats(-1e3, 1e3, width=32))
USER = st.one_of(st.integers(-(2**63), 2**63 - 1), TEXT)
ITEM, TAG = st.integers(0, 199), st.integers(0, 49)


def bag(ids: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(st.none(), ids, st.lists(ids, max_size=4))


FEATURES = {
    "price": NUMBER,
    "age_days": NUMBER,
    "user_id": bag(USER),
    "item_id": bag(ITEM),
    "item_tags": bag(TAG),
}
OUTPUT = st.sampled_from([{}, {"output": "logit"}, {"output": "probability"}])
INSTANCES = st.lists(st.fixed_dictionaries({}, optional=FEATURES), max_size=3).map(lambda r: {"instances": r})


@st.composite
def inputs(draw: st.DrawFn) -> dict[str, Any]:
    size = draw(st.integers(0, 3))
    names = draw(st.lists(st.sampled_from(list(FEATURES)), min_size=1, unique=True))
    return {"inputs": {n: draw(st.lists(FEATURES[n], min_size=size, max_size=size)) for n in names}}


@st.composite
def upstream(draw: st.DrawFn) -> dict[str, Any]:
    bags = [draw(st.lists(ids, max_size=3)) for ids in (USER, ITEM, TAG)]
    return {
        "float_features": draw(st.lists(NUMBER, min_size=2, max_size=2)),
        "id_list_features.lengths": [len(ids) for ids in bags],
        "id_list_features.values": [value for ids in bags for value in ids],
    }


VALID = st.tuples(st.one_of(INSTANCES, inputs(), upstream()), OUTPUT).map(lambda p: {**p[0], **p[1]})
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=4), inner, max_size=4)
    ),
    max_leaves=8,
)
KEYS = [
    "instances",
    "inputs",
    "float_features",
    "id_list_features.lengths",
    "id_list_features.values",
    "output",
]


def wire(body: Any) -> dict[str, Any]:
    return {"body": bytearray(json.dumps(body).encode())}


@pytest.fixture(scope="module")
def real() -> DLRMService:
    return DLRMService(Scorer(DLRMFactory(tiny()).build(mode="float")))


@given(bodies=st.lists(VALID, min_size=1, max_size=5))
def test_together_as_alone_bit_for_bit(sums: DLRMService, bodies: list[Any]) -> None:
    together = handle(sums, [wire(body) for body in bodies])
    assert [answer.status for answer in together] == [200] * len(bodies)
    assert together == [handle(sums, [wire(body)])[0] for body in bodies]


@given(bodies=st.lists(VALID, min_size=1, max_size=5))
@settings(max_examples=examples(30))
def test_together_as_alone_with_a_real_model(real: DLRMService, bodies: list[Any]) -> None:
    together = handle(real, [wire(body) for body in bodies])
    assert [answer.status for answer in together] == [200] * len(bodies)
    for answer, body in zip(together, bodies, strict=True):
        alone = handle(real, [wire(body)])[0]
        np.testing.assert_allclose(scores_of(answer), scores_of(alone), rtol=1e-5, atol=1e-5)


def scores_of(answer: Answer) -> list[float]:
    content = json.loads(answer.body)
    return content["predictions"] if "predictions" in content else [content["score"]]


@given(bodies=st.lists(st.one_of(VALID, JSON, st.dictionaries(st.sampled_from(KEYS), JSON)), max_size=4))
def test_any_json_is_answered(sums: DLRMService, bodies: list[Any]) -> None:
    # Through both doors: as bytes, and as TorchServe's own decoder's dict (NaN and surrogates too).
    for request in (wire, lambda body: {"body": body}):
        answers = handle(sums, [request(body) for body in bodies])
        assert len(answers) == len(bodies)
        for answer in answers:
            assert answer.status in (200, 400, 413)
            assert isinstance(json.loads(answer.body), dict)


@given(
    raws=st.lists(st.one_of(st.binary(max_size=30), VALID.map(lambda b: json.dumps(b).encode())), max_size=4)
)
def test_any_bytes_are_answered(sums: DLRMService, raws: list[bytes]) -> None:
    for answer in handle(sums, [{"body": raw} for raw in raws]):
        assert answer.status in (200, 400, 413)


@pytest.fixture(scope="module")
def sums() -> DLRMService:
    return DLRMService(SCORER)


class _Sum:
    """logit = price + (sum of all rows) / 1000."""

    declaration = tiny()

    @one_output
    def outputs(self, batch: Any) -> np.ndarray:
        starts = np.concatenate(([0], np.cumsum(batch.lengths)))
        sums = [int(batch.values[a:b].sum()) for a, b in pairwise(starts)]
        return (batch.dense[:, 0] / 100 + np.reshape(sums, (3, len(batch))).sum(axis=0) / 1000).astype(
            np.float32
        )


SCORER = _Sum()


def test_neighbours_of_a_wrong_request_get_their_scores(service: DLRMService, scorer: Any) -> None:
    right = {"instances": [{"price": 0.5}, {"item_id": 50}], "output": "logit"}
    wrong = [b"{", b'{"instances": [{"price": "x"}]}', b'{"instances": [{}, {"item_id": 200}]}', b" " * 4001]
    requests = [{"body": raw} for raw in wrong]
    requests[2:2] = [wire(right)]
    requests += [wire({"instances": []}), wire(right), {}]
    answers = handle(service, requests)
    assert [answer.status for answer in answers] == [400, 400, 200, 400, 413, 200, 200, 400]
    assert answers[2] == answers[6]
    assert json.loads(answers[2].body) == {"predictions": [0.5, 0.5]}
    assert len(scorer.batches) == 1
    assert len(scorer.batches[0]) == 4


def test_no_requests(service: DLRMService) -> None:
    assert handle(service, []) == []


def test_a_joint_batch_is_scored_in_bounded_pieces(
    service: DLRMService, scorer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dlrm_factory.requests.scoring.MAX_TOGETHER", 10)
    sizes = [4, 4, 4, 10, 0, 1]
    answers = handle(
        service, [wire({"instances": [{"price": i}] * n, "output": "logit"}) for i, n in enumerate(sizes)]
    )
    assert [json.loads(a.body)["predictions"] for a in answers] == [
        [float(i)] * n for i, n in enumerate(sizes)
    ]
    assert [len(batch) for batch in scorer.batches] == [8, 4, 10, 1]


def test_a_fault_of_ours_is_answered_and_logged(
    service: DLRMService, scorer: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(batch: Any) -> None:
        raise MemoryError("no memory for it")

    monkeypatch.setattr(scorer, "logits", fail)
    with caplog.at_level(logging.ERROR):
        answers = handle(service, [wire({"instances": [{}]}), {"body": b"{"}, wire({"instances": [{}]})])
    assert [answer.status for answer in answers] == [500, 400, 500]
    content = json.loads(answers[0].body)
    assert (content["code"], content["type"], content["path"]) == (500, "InternalError", "$")
    assert "no memory" not in content["message"]
    assert "no memory for it" in caplog.text


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_score_that_is_not_finite_is_whose_fault(
    service: DLRMService, scorer: Any, monkeypatch: Any, bad: Any
) -> None:
    def overflow(batch: Any) -> np.ndarray:
        return np.where(np.abs(batch.dense[:, 0]) > 10, bad, batch.dense[:, 0]).astype(np.float32)

    monkeypatch.setattr(scorer, "logits", overflow)
    bodies = [{"instances": [{}, {"price": price}], "output": "logit"} for price in (3e38, 1, 11)]
    answers = handle(service, [wire(body) for body in bodies])
    assert [answer.status for answer in answers] == [400, 200, 500]
    content = json.loads(answers[0].body)
    assert content["path"] == "$.instances[1].price"
    assert 'dense feature "price": 3e+38 is so large' in content["message"]


def test_ids_reach_the_scorer_exactly(service: DLRMService, scorer: Any) -> None:
    handle(service, [wire({"inputs": {"item_id": [[1, 199], 7, []], "item_tags": [0, [], [49, 48]]}})])
    (batch,) = scorer.batches
    assert batch.lengths.tolist() == [[0, 0, 0], [2, 1, 0], [1, 0, 2]]
    assert batch.values.tolist() == [1, 199, 7, 0, 49, 48]

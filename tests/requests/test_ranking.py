from __future__ import annotations

import json
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.batches import random_state
from support.depth import examples
from support.handed import handle

from dlrm_factory.config import tiny
from dlrm_factory.factory import DLRMFactory
from dlrm_factory.requests.service import DLRMService
from dlrm_factory.scorer import Scorer

# The hand-checkable scorer: logit = price + item_id / 100 + (sum of item_tags) / 10.
CANDIDATES = [
    {"id": "sku-1", "item_id": 5},
    {"id": 7, "item_id": 50},
    {"item_id": 20},
    {"id": None, "item_id": 50},
]
CONTEXT = {"price": 1, "item_tags": [3, 4], "user_id": "u17"}


def ranking(answer: tuple[int, Any]) -> list[Any]:
    status, content = answer
    assert status == 200, content
    assert content.keys() == {"ranking"}
    return [(entry.get("id"), entry["index"], entry["score"]) for entry in content["ranking"]]


def test_best_first_and_ties_by_index(ask: Any) -> None:
    body = {"context": CONTEXT, "candidates": CANDIDATES, "output": "logit"}
    found = [(7, 1, 2.2), (None, 3, 2.2), (None, 2, 1.9), ("sku-1", 0, 1.75)]
    assert ranking(ask(body)) == found
    for top_k in (1, 3, 4, 5000):
        assert ranking(ask({**body, "top_k": top_k})) == found[:top_k]
    assert ranking(ask({**body, "top_k": None})) == found


@pytest.mark.parametrize("price", [16, 60])
def test_saturated_scores_stay_in_order(ask: Any, price: int) -> None:
    """Logits of 16 have float32 probabilities that tie, those of 60 no probability below 1 at all."""
    body = {"context": {"price": price}, "candidates": CANDIDATES}
    found = ranking(ask(body))
    assert [index for _, index, _ in found] == [1, 3, 2, 0]
    scores = [score for *_, score in found]
    assert scores == sorted(scores, reverse=True)
    assert len(set(scores)) == (3 if price == 16 else 1)  # two candidates are alike
    rows = [{**body["context"], **each} for each in CANDIDATES]
    _, content = ask({"instances": [{"price": row["price"], "item_id": row["item_id"]} for row in rows]})
    assert [content["predictions"][index] for _, index, _ in found] == scores


def test_an_id_is_answered_only_where_it_was_sent(ask: Any) -> None:
    _, content = ask({"candidates": CANDIDATES})
    assert [sorted(entry) for entry in content["ranking"]] == [
        ["id", "index", "score"],
        ["index", "score"],
        ["index", "score"],
        ["id", "index", "score"],
    ]


def test_columns_answer_as_rows(ask: Any) -> None:
    columns = {"id": ["sku-1", 7, None, None], "item_id": [5, 50, 20, [50]]}
    rows = ask({"context": CONTEXT, "candidates": CANDIDATES})
    assert ask({"context": CONTEXT, "candidates": columns}) == rows
    assert ranking(rows)[0][2] == pytest.approx(1 / (1 + np.exp(-2.2)), abs=1e-6)


def test_the_context_is_looked_up_once(ask: Any, scorer: Any) -> None:
    ask({"context": CONTEXT, "candidates": CANDIDATES})
    (batch,), (shared,) = scorer.batches, scorer.shared
    assert batch.lengths.tolist() == [[0] * 4, [1] * 4, [0] * 4]
    assert shared.bags.lengths.tolist() == [[1], [0], [2]]
    assert shared.bags.values.tolist()[1:] == [3, 4]
    assert list(shared.spans) == [(0, 4)]
    assert batch.dense[:, 0].tolist() == [1.0] * 4


def test_nothing_to_share(ask: Any, scorer: Any) -> None:
    for context in ({}, None, {"user_id": None, "item_tags": []}):
        assert len(ranking(ask({"context": context, "candidates": [{"item_id": 1}]}))) == 1
    assert scorer.shared == []


def test_dense_features_alone_are_shared_too(ask: Any, scorer: Any) -> None:
    assert len(ranking(ask({"context": {"price": 1}, "candidates": [{"item_id": 1}, {"item_id": 2}]}))) == 2
    (shared,) = scorer.shared
    assert (shared.spans, shared.bags.lengths.sum()) == ([(0, 2)], 0)
    assert (shared.bags.dense == scorer.batches[-1].dense).all()


@pytest.mark.parametrize("candidates", [[], {"id": []}, {"item_id": [], "id": []}])
def test_no_candidates(ask: Any, candidates: Any) -> None:
    assert ask({"context": {"user_id": 1}, "candidates": candidates}) == (200, {"ranking": []})


@pytest.mark.parametrize(
    ("body", "path", "said"),
    [
        ({"context": {}}, "$.candidates", "the candidates are missing"),
        ({"top_k": 3}, "$.candidates", "the candidates are missing"),
        ({"candidates": 3}, "$.candidates", "the candidates are 3; send a list"),
        ({"candidates": {}}, "$.candidates", "there are no columns"),
        ({"candidates": [1]}, "$.candidates[0]", "1 is not an object"),
        ({"context": [], "candidates": []}, "$.context", "a list of 0 is not an object"),
        ({"context": {"id": 1}, "candidates": []}, "$.context.id", '"id" is not a feature'),
        ({"context": {"pric": 1}, "candidates": []}, "$.context.pric", 'did you mean "price"?'),
        ({"context": {"price": "1"}, "candidates": [{}]}, "$.context.price", "without quotes"),
        ({"context": {"price": "1"}, "candidates": []}, "$.context.price", "without quotes"),
        ({"context": {"item_tags": [1, 50]}, "candidates": [{}]}, "$.context.item_tags[1]", "[0, 50)"),
        ({"candidates": [{}, {"item_id": 500}]}, "$.candidates[1].item_id", "[0, 200)"),
        ({"candidates": {"item_id": [1, 500]}}, "$.candidates.item_id[1]", "[0, 200)"),
        ({"candidates": {"item_tags": [1, [2, 50]]}}, "$.candidates.item_tags[1][1]", "[0, 50)"),
        ({"candidates": [{"usr_id": 1}]}, "$.candidates[0].usr_id", 'did you mean "user_id"?'),
        ({"candidates": {"id": [1, 2], "item_id": [1]}}, "$.candidates.item_id", '"id" has 2'),
        ({"candidates": {"id": "ab"}}, "$.candidates.id", 'column "id" is "ab", not a list'),
        ({"context": {"item_id": 1}, "candidates": [{}, {"item_id": 2}]}, "$.candidates[1].item_id", "both"),
        ({"context": {"price": 1}, "candidates": {"price": [2]}}, "$.candidates.price", "both"),
        ({"candidates": [{"id": "a"}, {"id": 1.5}]}, "$.candidates[1].id", "1.5 is not a candidate's id"),
        ({"candidates": [{"id": True}]}, "$.candidates[0].id", "true is not a candidate's id"),
        ({"candidates": {"id": [1, [2]]}}, "$.candidates.id[1]", "a list of 1 is not a candidate's id"),
        ({"candidates": [{"id": 2**63}]}, "$.candidates[0].id", "send a string or an int64"),
        ({"candidates": [{}], "top_k": 0}, "$.top_k", "top_k is 0; send a whole number of at least 1"),
        ({"candidates": [{}], "top_k": -1}, "$.top_k", "top_k is -1"),
        ({"candidates": [{}], "top_k": 2.0}, "$.top_k", "top_k is 2.0"),
        ({"candidates": [{}], "top_k": True}, "$.top_k", "top_k is true"),
        ({"candidates": [{}], "output": "odds"}, "$.output", '"probability" or "logit"'),
        ({"candidates": [{}], "instances": []}, "$", "mixes"),
    ],
)
def test_mistakes_have_a_path_and_a_remedy(ask: Any, body: Any, path: str, said: str) -> None:
    status, answer = ask(body)
    said = said.replace("both", "is in the context and with the candidates")
    assert (status, answer["type"], answer["path"]) == (400, "RequestError", path), answer
    assert said in answer["message"]


def test_mistakes_of_context_and_candidates_are_listed_together(ask: Any) -> None:
    status, answer = ask({"context": {"price": "9"}, "candidates": [{"item_id": -1}, {"item_id": 1.5}]})
    assert status == 400
    assert [error["path"] for error in answer["errors"]] == [
        "$.context.price",
        "$.candidates[0].item_id",
        "$.candidates[1].item_id",
    ]


def test_an_id_with_half_a_surrogate_pair(service: DLRMService) -> None:
    # TorchServe's own JSON decoder lets it through; ours does not.
    (answer,) = handle(service, [{"body": {"candidates": [{"id": "\ud800"}]}}])
    assert answer.status == 400
    assert json.loads(answer.body)["path"] == "$.candidates[0].id"


def test_too_many_candidates(ask: Any) -> None:
    for candidates in ([{}] * 11, {"item_id": [1] * 11}):
        status, answer = ask({"candidates": candidates})
        assert (status, answer["type"], answer["path"]) == (413, "LimitError", "$.candidates")


def test_a_dense_context_that_overflows_is_the_contexts_fault(
    ask: Any, scorer: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr(scorer, "outputs", lambda batch, shared=None: batch.dense[:, :1] * np.float32(np.nan))
    status, answer = ask({"context": {"price": 3e38}, "candidates": [{}, {}]})
    assert (status, answer["path"]) == (400, "$.context.price")


@pytest.fixture(scope="module")
def real() -> DLRMService:
    return DLRMService(Scorer(DLRMFactory(tiny()).build(weights=random_state(tiny()))))


@pytest.fixture(scope="module")
def weighted() -> DLRMService:
    sparse = [msgspec.structs.replace(f, weighted=f.name != "item_tags") for f in tiny().sparse_features]
    declaration = msgspec.structs.replace(tiny(), sparse_features=sparse)
    return DLRMService(Scorer(DLRMFactory(declaration).build(weights=random_state(declaration))))


def test_weighted_bags_in_context_and_candidates(weighted: DLRMService) -> None:
    context = {"user_id": {"ids": ["u17", 4], "weights": [0.5, 2]}, "item_tags": [3, 9]}
    candidates = [{"item_id": {"ids": [12, 13], "weights": [3, 0.25]}}, {"item_id": 12}, {}]
    ranking = {"context": context, "candidates": candidates, "output": "logit"}
    rows = {"instances": [{**context, **candidate} for candidate in candidates], "output": "logit"}
    requests = [{"body": json.dumps(body).encode()} for body in (ranking, rows, ranking, rows)]
    explained = {"explain": "True"}
    answers = handle(weighted, requests, [{}, {}, explained, explained])
    ranked, scored, ranked_why, scored_why = (json.loads(answer.body) for answer in answers)
    for entry, why in zip(ranked["ranking"], ranked_why["explanations"], strict=True):
        assert entry["score"] == pytest.approx(scored["predictions"][entry["index"]], abs=1e-6)
        expected = scored_why["explanations"][entry["index"]]["contributions"]
        assert why["contributions"] == pytest.approx(expected, abs=1e-6)
        assert why["contributions"]["user_id"] != 0
    assert len({round(score, 4) for score in scored["predictions"]}) == 3


def test_a_mistake_in_a_weighted_context(weighted: DLRMService) -> None:
    body = {"context": {"item_id": {"ids": [1, 500], "weights": [1, 1]}}, "candidates": [{}]}
    (answer,) = handle(weighted, [{"body": json.dumps(body).encode()}])
    assert (answer.status, json.loads(answer.body)["path"]) == (400, "$.context.item_id.ids[1]")


FEATURES: dict[str, st.SearchStrategy[Any]] = {
    "price": st.floats(-5, 5, width=32),
    "age_days": st.integers(0, 100),
    "user_id": st.text(st.characters(exclude_categories=["Cs"]), max_size=3),
    "item_id": st.one_of(st.none(), st.integers(0, 199)),
    "item_tags": st.lists(st.integers(0, 49), max_size=5),
}


@st.composite
def rankings(draw: st.DrawFn) -> dict[str, Any]:
    shared = draw(st.sets(st.sampled_from(sorted(FEATURES))))
    context = draw(st.fixed_dictionaries({}, optional={n: FEATURES[n] for n in shared}))
    own = {name: FEATURES[name] for name in FEATURES if name not in shared}
    rows = draw(st.lists(st.fixed_dictionaries({}, optional=own), max_size=4))
    return {"context": context, "candidates": rows, "output": "logit"}


@given(bodies=st.lists(rankings(), min_size=1, max_size=4))
@settings(max_examples=examples(40))
def test_a_ranking_scores_as_its_rows_do(real: DLRMService, bodies: list[Any]) -> None:
    rows = [[{**body["context"], **row} for row in body["candidates"]] for body in bodies]
    plain = [{"instances": instances, "output": "logit"} for instances in rows]
    # Rankings and other requests in one batch.
    answers = handle(real, [{"body": json.dumps(body).encode()} for body in [*bodies, *plain]])
    contents = [json.loads(answer.body) for answer in answers]
    for ranked, scored in zip(contents[: len(bodies)], contents[len(bodies) :], strict=True):
        found = {entry["index"]: entry["score"] for entry in ranked["ranking"]}
        assert [found[i] for i in range(len(found))] == pytest.approx(scored["predictions"], abs=1e-5)
        assert list(found.values()) == sorted(found.values(), reverse=True)

"""Rankings by an expression of outputs and dense features."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import numpy as np
import pytest
from support.handed import handle
from support.several_outputs import CLICK, PURCHASE, TOWER, ByHand, ask, content, declared, sigmoid

from dlrm_factory.config import DLRMDeclaration
from dlrm_factory.requests.service import DLRMService


@pytest.fixture
def service() -> DLRMService:
    return DLRMService(ByHand(declared(CLICK, PURCHASE, TOWER)))


CANDIDATES = [
    {"id": "a", "item": 5, "price": 10},
    {"id": "b", "item": 20},  # price has its default, 2
    {"id": "c", "item": 10, "price": 3.5},
    {"id": "d", "item": 5, "price": 10},
]
COLUMNS = {"id": list("abcd"), "item": [5, 20, 10, 5], "price": [10, None, 3.5, 10]}


def ranked(service: DLRMService, body: Any, **headers: Any) -> list[Any]:
    (entries,) = content(service, body, **headers).values()
    return entries


def by_hand(outputs: dict[str, float], price: float) -> float:
    return outputs["click"] * outputs["purchase"] * price


@pytest.mark.parametrize("candidates", [CANDIDATES, COLUMNS])
def test_an_expression_of_outputs_and_raw_values(service: DLRMService, candidates: Any) -> None:
    entries = ranked(service, {"candidates": candidates, "rank_by": "click * purchase * price"})
    assert [entry["id"] for entry in entries] == ["a", "d", "b", "c"]  # equal ones in the request's order
    prices = {"a": 10, "b": 2, "c": 3.5, "d": 10}  # as sent, though log1p is what the model gets
    for entry in entries:
        assert list(entry) == ["id", "index", "score", "outputs"]
        # Exactly what a client computes from the answer.
        assert entry["score"] == by_hand(entry["outputs"], prices[entry["id"]])
    assert entries[0]["outputs"] == {
        "click": pytest.approx(sigmoid(0.5)),
        "purchase": pytest.approx(sigmoid(-0.5)),
    }


def test_a_value_of_the_context(service: DLRMService) -> None:
    rows = [{"item": item} for item in (5, 20)]
    body = {"context": {"price": 7, "age-days": 0.5}, "candidates": rows, "outputs": ["click"]}
    entries = ranked(service, {**body, "rank_by": "-click * price ** 2 + `age-days`"})
    assert [entry["index"] for entry in entries] == [0, 1]
    assert entries[0]["score"] == -entries[0]["outputs"]["click"] * 49 + 0.5
    constant = ranked(service, {**body, "rank_by": "price"})
    assert [(entry["index"], entry["score"]) for entry in constant] == [(0, 7.0), (1, 7.0)]


def test_top_k_and_outputs_beside(service: DLRMService) -> None:
    body = {
        "candidates": CANDIDATES,
        "rank_by": "click / price",
        "top_k": 2,
        "outputs": ["tower", "purchase"],
    }
    entries = ranked(service, {**body, "output": "logit"})
    assert [entry["id"] for entry in entries] == ["b", "c"]
    # A logit is what is given of an output; an expression is of probabilities in any case.
    assert entries[0]["outputs"] == {"tower": [0.0, 0.0, 2.0], "purchase": 1.0}
    assert entries[0]["score"] == pytest.approx(sigmoid(2) / 2, abs=1e-8)


def test_without_an_expression_the_first_probability_ranks(service: DLRMService) -> None:
    body = {"candidates": CANDIDATES}
    entries = ranked(service, body)
    assert [entry["id"] for entry in entries] == ["b", "c", "a", "d"]
    assert entries[0]["score"] == entries[0]["outputs"]["click"] == pytest.approx(sigmoid(2))
    (best, *_) = ranked(service, {**body, "outputs": ["purchase"]})
    assert best == {"id": "b", "index": 1, "score": pytest.approx(sigmoid(1))}
    (best, *_) = ranked(service, {**body, "outputs": ["tower", "purchase"], "output": "logit"})
    assert best["score"] == best["outputs"]["purchase"] == 1.0
    (best, *_) = ranked(service, {**body, "outputs": ["tower"]})
    assert (best["score"], best["outputs"]) == (pytest.approx(sigmoid(2)), {"tower": [0.0, 0.0, 2.0]})


def test_a_name_alone_is_that_output(service: DLRMService) -> None:
    body = {"candidates": [{"item": 0}, {"item": 5}], "rank_by": "purchase", "outputs": ["purchase"]}
    assert ranked(service, {**body, "output": "logit"}) == [
        {"index": 1, "score": -0.5},
        {"index": 0, "score": -1.0},
    ]
    assert ranked(service, {**body, "outputs": ["click"]})[0].keys() == {"index", "score", "outputs"}


def test_the_declared_expression_holds_where_the_request_says_none() -> None:
    service = DLRMService(ByHand(declared(CLICK, PURCHASE, rank_by="purchase - price")))
    body = {"candidates": CANDIDATES}
    for said in ({}, {"rank_by": None}):
        assert [entry["id"] for entry in ranked(service, {**body, **said})] == ["b", "c", "a", "d"]
    assert [entry["id"] for entry in ranked(service, {**body, "rank_by": "price"})] == ["a", "d", "c", "b"]


def test_a_model_of_one_output_by_an_expression() -> None:
    service = DLRMService(ByHand(declared(CLICK)))
    (best, *_) = ranked(service, {"candidates": CANDIDATES, "rank_by": "click * price"})
    assert best["id"] == "a"
    assert best["score"] == best["outputs"]["click"] * 10


def test_a_model_of_vectors_ranks_by_dense_features_alone() -> None:
    service = DLRMService(ByHand(declared(TOWER)))
    (best, *_) = ranked(service, {"candidates": CANDIDATES, "rank_by": "price"})
    assert best == {"id": "a", "index": 0, "score": 10.0, "outputs": {"tower": [0.0, 0.0, 0.5]}}
    (answer,) = ask(service, {"candidates": CANDIDATES})
    found = json.loads(answer.body)
    assert (answer.status, found["path"]) == (400, "$.rank_by")
    assert "the model gives no probability to rank by" in found["message"]


@pytest.mark.parametrize(
    ("body", "path", "said"),
    [
        (
            {"rank_by": "clik * price"},
            "$.rank_by",
            'rank_by "clik * price": at character 1, near "clik * price"',
        ),
        ({"rank_by": "click *"}, "$.rank_by", 'rank_by "click *": at its end'),
        ({"rank_by": 3}, "$.rank_by", "rank_by is 3; send an expression"),
        ({"rank_by": ["click"]}, "$.rank_by", "rank_by is a list of 1"),
        ({"rank_by": "click * history"}, "$.rank_by", '"history" is a sparse feature'),
        ({"rank_by": "click * tower"}, "$.rank_by", '"tower" is a vector'),
        ({"rank_by": "x" * 501}, "$.rank_by", "it has 501 characters, over 500"),
        (
            {"rank_by": "click / (price - 2)"},
            "$.candidates[1]",
            'rank_by "click / (price - 2)" is not a finite number for candidate 1 where click 0.880797, price 2;',
        ),
        ({"rank_by": "log(price - 5)"}, "$.candidates[1]", "for candidate 1 where price 2;"),
        ({"rank_by": "exp(price * 100)"}, "$.candidates[0]", "for candidate 0 where price 10;"),
    ],
)
def test_mistakes_have_a_place(service: DLRMService, body: Any, path: str, said: str) -> None:
    request = {"candidates": CANDIDATES, **body}
    (answer,) = ask(service, request)
    found = json.loads(answer.body)
    assert (answer.status, found["type"], found["path"]) == (400, "RequestError", path), found
    assert said in found["message"]


def test_an_expression_with_half_a_surrogate_pair(service: DLRMService) -> None:
    # TorchServe's own JSON decoder lets it through; ours does not.
    (answer,) = handle(service, [{"body": {"candidates": [{}], "rank_by": "\ud800"}}])
    assert (answer.status, json.loads(answer.body)["path"]) == (400, "$.rank_by")


def test_a_mistake_in_columns_has_the_path_of_all(service: DLRMService) -> None:
    (answer,) = ask(service, {"candidates": COLUMNS, "rank_by": "1 / (price - 3.5)"})
    found = json.loads(answer.body)
    assert (answer.status, found["path"]) == (400, "$.candidates")
    assert "for candidate 2 where price 3.5" in found["message"]


def test_neighbours_of_a_wrong_expression_are_answered(service: DLRMService) -> None:
    good = {"candidates": CANDIDATES, "rank_by": "click * price"}
    answers = ask(service, good, {**good, "rank_by": "1 / (price - 2)"}, {"instances": [{}]}, good)
    assert [answer.status for answer in answers] == [200, 400, 200, 200]
    assert answers[0].body == answers[3].body


def test_rank_by_belongs_to_rankings(service: DLRMService) -> None:
    (answer,) = ask(service, {"instances": [{}], "rank_by": "click"})
    assert answer.status == 400
    assert "the body mixes instances and rank_by" in json.loads(answer.body)["message"]


def test_no_candidates(service: DLRMService) -> None:
    for candidates in ([], {"id": []}):
        assert content(service, {"candidates": candidates, "rank_by": "click * price"}) == {"ranking": []}


def test_contributions_are_to_what_is_ranked_by(service: DLRMService) -> None:
    body = {
        "candidates": [{"id": "b", "item": 20, "price": 3}, {"id": "a", "item": 5}],
        "rank_by": "click * price",
    }
    first, second = ranked(service, body, explain="True")
    assert (first["id"], second["id"]) == ("b", "a")
    plain = ranked(service, body)
    for explained, entry in zip((first, second), plain, strict=True):
        assert {key: value for key, value in explained.items() if key != "contributions"} == entry
    click = sigmoid(2)
    # Without its price a candidate has the declared one, 2; without its item the logit is 0.
    assert first["contributions"] == pytest.approx(
        {"price": click * 3 - click * 2, "age-days": 0, "item": click * 3 - 0.5 * 3, "history": 0}, abs=1e-6
    )
    (answer,) = ask(service, {**body, "rank_by": "click / (price - 2) "}, explain="True")
    assert answer.status == 400


def test_a_feature_without_which_there_is_no_value(service: DLRMService) -> None:
    body = {"candidates": [{"item": 20, "price": 3}], "rank_by": "click / (price - 2)"}
    assert len(ranked(service, body)) == 1
    (answer,) = ask(service, body, explain="True")
    found = json.loads(answer.body)
    assert (answer.status, found["path"]) == (400, "$.candidates[0]")
    assert "for candidate 0, without price, where click 0.880797, price 2;" in found["message"]


def test_an_output_of_the_name_of_a_feature_is_the_output() -> None:
    declaration: DLRMDeclaration = declared(msgspec.structs.replace(CLICK, name="price"), PURCHASE)
    entries = ranked(DLRMService(ByHandAs(declaration)), {"candidates": CANDIDATES, "rank_by": "price * 2"})
    assert entries[0]["id"] == "b"
    assert entries[0]["score"] == 2 * entries[0]["outputs"]["price"]


class ByHandAs(ByHand):
    def outputs(self, batch: Any, shared: Any = None) -> np.ndarray:
        given, self.declaration = self.declaration, declared(CLICK, PURCHASE)
        try:
            return super().outputs(batch, shared)
        finally:
            self.declaration = given

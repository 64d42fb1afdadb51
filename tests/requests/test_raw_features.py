"""Vocabularies, weights and trimmed bags through every request shape, as a worker answers them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from support.batches import random_state
from support.handed import handle
from support.raw_features import raw_declaration, raw_vocabularies

from dlrm_factory.requests.service import DLRMService
from dlrm_factory.scorer import Scorer
from dlrm_factory.weights.checkpoint import open_checkpoint, save_checkpoint
from dlrm_factory.weights.sealed import seal_weights


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> DLRMService:
    folder, declaration = tmp_path_factory.mktemp("raw"), raw_declaration()
    save_checkpoint(
        folder / "c.safetensors", declaration, random_state(declaration), vocabularies=raw_vocabularies()
    )
    seal_weights(open_checkpoint(folder / "c.safetensors"), folder / "sealed")
    scorer = Scorer.load(folder / "sealed")
    return DLRMService(scorer, vocabularies=scorer.vocabularies)


def ask(service: DLRMService, *bodies: Any, explain: bool = False) -> list[dict[str, Any]]:
    headers = [{"explain": "True"} if explain else {}] * len(bodies)
    answers = handle(service, [{"body": json.dumps(body).encode()} for body in bodies], headers)
    return [json.loads(answer.body) for answer in answers]


BAG = {"ids": ["item_1", "item_2"], "weights": [0.5, -2]}
ROWS = [
    {"price": 3, "user": "user_1", "item": "item_3", "seen": BAG, "tags": [1, 2]},
    {"hour": 200, "user": "stranger", "seen": ["item_1", "gone", "item_4", "item_5", "item_6"]},
    {"user": 7, "seen": "item_9"},
]


def test_rows_columns_and_rankings_agree(service: DLRMService) -> None:
    names = ["price", "hour", "user", "item", "seen", "tags"]
    columns = {name: [row.get(name) for row in ROWS] for name in names}
    context = {name: ROWS[0][name] for name in ("price", "user", "seen")}
    rows, by_column, ranking, tiled = ask(
        service,
        {"instances": ROWS},
        {"inputs": columns},
        {"context": context, "candidates": [{"item": "item_3"}, {"item": "item_4", "tags": [5]}]},
        {"instances": [context | {"item": "item_3"}, context | {"item": "item_4", "tags": [5]}]},
    )
    assert rows == by_column
    assert len(set(rows["predictions"])) == 3
    scores = {entry["index"]: entry["score"] for entry in ranking["ranking"]}
    assert [scores[0], scores[1]] == pytest.approx(tiled["predictions"], abs=1e-6)


def test_weights_of_one_are_no_weights_even_beside_other_weights(service: DLRMService) -> None:
    ones = {"ids": ["item_1", "item_2"], "weights": [1, 1]}
    plain, with_ones, beside = ask(
        service, *({"instances": [{"seen": bag}], "output": "logit"} for bag in (ones["ids"], ones, BAG))
    )
    assert plain == with_ones
    assert plain != beside
    assert plain == ask(service, {"instances": [{"seen": ones["ids"]}], "output": "logit"})[0]


def test_upstreams_shape_has_weights_of_one(service: DLRMService) -> None:
    flat, named = ask(
        service,
        {
            "float_features": [3, 12, 1],
            "id_list_features.lengths": [1, 1, 2, 1],
            "id_list_features.values": ["user_1", "item_3", "item_1", "item_2", 4],
        },
        {"instances": [{"price": 3, "hour": 12, "visits": 1, "user": "user_1", "item": "item_3", "tags": 4,
                        "seen": ["item_1", "item_2"]}]},
    )  # fmt: skip
    assert flat["score"] == named["predictions"][0]


def test_an_unknown_id_is_as_good_as_its_policy(service: DLRMService) -> None:
    one, other, dropped, empty = (
        answer["predictions"][0]
        for answer in ask(
            service,
            *({"instances": [row]} for row in ({"user": "x"}, {}, {"seen": ["x", "y"]}, {"seen": []})),
        )
    )
    assert one != other
    assert dropped == empty == other


def test_explanations_take_weights_along(service: DLRMService) -> None:
    (explained,) = ask(service, {"instances": ROWS[:1], "output": "logit"}, explain=True)
    with_bag, without = ask(
        service,
        {"instances": ROWS[:1], "output": "logit"},
        {"instances": [{**ROWS[0], "seen": None}], "output": "logit"},
    )
    (explanation,) = explained["explanations"]
    difference = with_bag["predictions"][0] - without["predictions"][0]
    assert explanation["contributions"]["seen"] == pytest.approx(difference, abs=1e-5)


@pytest.mark.parametrize(
    ("body", "path", "said"),
    [
        ({"instances": [{}, {"item": "item_99"}]}, "$.instances[1].item", "not in the vocabulary of table"),
        ({"inputs": {"item": ["item_1", ["item_99"]]}}, "$.inputs.item[1][0]", "not in the vocabulary"),
        ({"instances": [{"seen": {"ids": ["item_1"], "weights": ["1"]}}]}, "$.instances[0].seen.weights[0]", "string"),
        ({"inputs": {"seen": [None, {"ids": [1, True]}]}}, "$.inputs.seen[1].ids[1]", "boolean"),
        ({"inputs": {"seen": [{"ids": [1, 2], "weights": [1]}]}}, "$.inputs.seen[0]", "2 ids have 1 weights"),
        ({"instances": [{"tags": {"ids": [1], "weights": [1]}}]}, "$.instances[0].tags", "takes no weights"),
        ({"context": {"seen": {"ids": [1.5]}}, "candidates": [{}]}, "$.context.seen.ids[0]", "floating-point"),
    ],
)  # fmt: skip
def test_mistakes_have_their_path(service: DLRMService, body: Any, path: str, said: str) -> None:
    (answer,) = ask(service, body)
    assert answer["code"] == 400
    assert answer["path"] == path
    assert said in answer["message"]


def test_integers_as_columns_are_looked_up_exactly(service: DLRMService) -> None:
    fast, slow = ask(
        service, {"inputs": {"user": [7, 2**60, -1]}}, {"inputs": {"user": ["7", str(2**60), "-1"]}}
    )
    assert fast == slow
    assert len(fast["predictions"]) == 3


def test_no_samples(service: DLRMService) -> None:
    assert ask(service, {"instances": []})[0] == {"predictions": []}

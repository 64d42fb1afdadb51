from __future__ import annotations

from typing import Any

import pytest

from dlrm_factory.errors import LimitError, RequestError
from dlrm_factory.requests.formats.mistakes import Mistakes


def paths(answer: dict[str, Any]) -> list[str]:
    return [error["path"] for error in answer["errors"]]


def test_several_mistakes_are_listed_and_the_first_leads(ask: Any) -> None:
    rows = [{"price": "9", "item_id": 1500}, {"item_tags": [1, True, None]}]
    status, answer = ask({"instances": rows})
    assert (status, answer["code"], answer["type"]) == (400, 400, "RequestError")
    assert answer["path"] == "$.instances[0].price"
    assert answer["message"].endswith("(and 3 other mistakes, listed in errors)")
    assert paths(answer) == [
        "$.instances[0].price",
        "$.instances[0].item_id",
        "$.instances[1].item_tags[1]",
        "$.instances[1].item_tags[2]",
    ]
    assert (
        answer["errors"][0]["message"]
        == 'dense feature "price": "9" is a string; send a number, without quotes'
    )
    assert all(error.keys() == {"message", "path"} for error in answer["errors"])


def test_two_mistakes(ask: Any) -> None:
    _, answer = ask({"inputs": {"usr_id": [1], "pric": [2]}})
    assert paths(answer) == ["$.inputs.usr_id", "$.inputs.pric"]
    assert "(and 1 other mistake, listed" in answer["message"]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ([-1] * 10, "(and 9 other mistakes, listed in errors)"),
        ([-1] * 9 + [[-1, -2]], "(and more than 9 other mistakes, the first 9 listed in errors)"),
        ([[-1] * 8] * 10, "(and more than 9 other mistakes, the first 9 listed in errors)"),
    ],
)
def test_ten_are_listed(ask: Any, wrong: list[Any], said: str) -> None:
    _, answer = ask({"inputs": {"item_tags": wrong}})
    assert len(answer["errors"]) == 10
    assert answer["message"].endswith(said)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"instances": [3, {"x": 1}, None]}, ["$.instances[0]", "$.instances[1].x", "$.instances[2]"]),
        ({"inputs": {"price": 1, "nope": 2}}, ["$.inputs.nope", "$.inputs.price", "$.inputs.nope"]),
        (
            {"inputs": {"price": [1], "item_id": [], "item_tags": []}},
            ["$.inputs.item_id", "$.inputs.item_tags"],
        ),
        (
            {"inputs": {"price": ["a", 1], "age_days": [1, True], "item_id": [-1, 200]}},
            ["$.inputs.price[0]", "$.inputs.age_days[1]", "$.inputs.item_id[0]", "$.inputs.item_id[1]"],
        ),
        (
            {
                "float_features": ["x", True],
                "id_list_features.lengths": [0, 1, 1],
                "id_list_features.values": [-1, "y"],
            },
            [
                "$.float_features[0]",
                "$.float_features[1]",
                '$["id_list_features.values"][0]',
                '$["id_list_features.values"][1]',
            ],
        ),
        (
            {"float_features": [], "id_list_features.lengths": [1], "id_list_features.values": []},
            ["$.float_features", '$["id_list_features.lengths"]'],
        ),
        (
            {
                "float_features": [1, 2],
                "id_list_features.lengths": [-1, "1", 0],
                "id_list_features.values": [],
            },
            ['$["id_list_features.lengths"][0]', '$["id_list_features.lengths"][1]'],
        ),
    ],
)
def test_every_shape_lists_its_mistakes(ask: Any, body: Any, expected: list[str]) -> None:
    status, answer = ask(body)
    assert status == 400
    assert paths(answer) == expected
    assert answer["path"] == expected[0]


def test_a_limit_that_leads_gives_its_status(ask: Any) -> None:
    status, answer = ask({"inputs": {"item_tags": [[1] * 9, [-1]]}})
    assert (status, answer["code"], answer["type"]) == (413, 413, "LimitError")
    assert paths(answer) == ["$.inputs.item_tags[0]", "$.inputs.item_tags[1][0]"]
    status, answer = ask({"inputs": {"price": [True, 1], "item_tags": [[1] * 9, []]}})
    assert (status, answer["code"]) == (400, 400)
    assert len(answer["errors"]) == 2


def test_no_mistake_is_no_error() -> None:
    mistakes = Mistakes()
    mistakes.check()
    assert not mistakes.full


def test_looking_stops_after_the_eleventh() -> None:
    looked = 0

    def endless() -> Any:
        nonlocal looked
        while True:
            looked += 1
            yield RequestError("no")

    mistakes = Mistakes()
    mistakes.add_all(endless())
    assert looked <= 12
    with pytest.raises(RequestError) as caught:
        mistakes.check()
    assert (len(caught.value.others), caught.value.more) == (9, True)


def test_the_first_keeps_its_kind() -> None:
    mistakes = Mistakes()
    mistakes.add(LimitError("large", "$.a"))
    mistakes.add(RequestError("wrong", "$.b"))
    with pytest.raises(LimitError):
        mistakes.check()

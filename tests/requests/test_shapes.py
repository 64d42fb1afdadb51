from __future__ import annotations

import math
from typing import Any

import pytest

LENGTHS, VALUES = "id_list_features.lengths", "id_list_features.values"


def chance(*logits: float) -> Any:
    """Their sigmoids, within float32's rounding."""
    return pytest.approx([1 / (1 + math.exp(-x)) for x in logits], rel=2e-7)


def upstream(**changes: Any) -> dict[str, Any]:
    body: dict[str, Any] = {"float_features": [0.5, 3.0], LENGTHS: [1, 1, 2], VALUES: [7, 50, 3, 4]}
    return {**body, **{key.replace("__", "."): value for key, value in changes.items()}}


def test_upstream(ask: Any) -> None:
    status, answer = ask(upstream())
    assert (status, answer.keys()) == (200, {"score"})
    assert [answer["score"]] == chance(0.5 + 0.5 + 0.7)
    assert ask(upstream(output="logit")) == (200, {"score": 1.7})
    assert ask(upstream(output="probability")) == ask(upstream())


def test_upstream_with_empty_bags_and_defaults(ask: Any) -> None:
    empty = {"float_features": [None, None], LENGTHS: [0, 0, 0], VALUES: [], "output": "logit"}
    assert ask(empty) == (200, {"score": 0.0})


def test_instances(ask: Any) -> None:
    rows = [{"price": 1, "item_id": 20, "user_id": "u17"}, {}, {"item_tags": [1, 2], "price": None}]
    assert ask({"instances": rows}) == (200, {"predictions": chance(1.2, 0, 0.3)})
    assert ask({"instances": rows, "output": "logit"}) == (200, {"predictions": [1.2, 0.0, 0.3]})


def test_instances_with_every_feature(ask: Any) -> None:
    row = {"item_tags": [1, 2], "item_id": 20, "user_id": [], "age_days": 3, "price": 1}
    status, answer = ask({"instances": [row, {**row, "price": 2}], "output": "logit"})
    assert (status, answer) == (200, {"predictions": [1.5, 2.5]})


def test_inputs(ask: Any) -> None:
    columns = {"item_tags": [[1, 2], None, 4], "price": [1, 0, None]}
    assert ask({"inputs": columns}) == (200, {"predictions": chance(1.3, 0, 0.4)})
    assert ask({"inputs": columns, "output": "logit"}) == (200, {"predictions": [1.3, 0.0, 0.4]})


@pytest.mark.parametrize("body", [{"instances": []}, {"inputs": {"price": []}}])
def test_no_samples(ask: Any, body: Any) -> None:
    assert ask(body) == (200, {"predictions": []})


@pytest.mark.parametrize(
    ("body", "path", "said"),
    [
        # The body as a whole.
        ({}, "$", "holds no samples"),
        ({"output": "logit"}, "$", "holds no samples"),
        ([], "$", "a list of 0; send a JSON object"),
        (3, "$", "the body is 3; send a JSON object"),
        ({"instance": []}, "$.instance", 'did you mean "instances"?'),
        ({"instances": [], "top k": 3}, '$["top k"]', 'unknown key "top k"'),
        ({"instances": [], "inputs": {}}, "$", "mixes instances and inputs"),
        ({"instances": [], "output": "odds"}, "$.output", '"probability" or "logit"'),
        ({"instances": [], "output": ["logit"]}, "$.output", "a list of 1"),
        # Rows.
        ({"instances": {}}, "$.instances", "an object is not a list"),
        ({"instances": [{}, 3]}, "$.instances[1]", "3 is not an object"),
        ({"instances": [{}, {"usr_id": 1}]}, "$.instances[1].usr_id", 'did you mean "user_id"?'),
        ({"instances": [{"zz/top": 1}]}, '$.instances[0]["zz/top"]', "remove it"),
        ({"instances": [{}, {"price": "9"}]}, "$.instances[1].price", "without quotes"),
        ({"instances": [{}, {"item_id": 1500}]}, "$.instances[1].item_id", "[0, 200)"),
        (
            {"instances": [{"item_tags": [1, -1]}]},
            "$.instances[0].item_tags[1]",
            "id -1 is out of range [0, 50)",
        ),
        # Columns.
        ({"inputs": 3}, "$.inputs", "3 is not an object"),
        ({"inputs": {}}, "$.inputs", "no columns"),
        ({"inputs": {"pric": [1]}}, "$.inputs.pric", 'did you mean "price"?'),
        ({"inputs": {"price": 1}}, "$.inputs.price", "is 1, not a list"),
        ({"inputs": {"price": None}}, "$.inputs.price", "leave the column out"),
        (
            {"inputs": {"item_id": [1, 2], "price": [1]}},
            "$.inputs.price",
            '1 values, but column "item_id" has 2',
        ),
        ({"inputs": {"price": [1, True]}}, "$.inputs.price[1]", "true is a boolean"),
        ({"inputs": {"item_id": [1, 2.0]}}, "$.inputs.item_id[1]", "id 2.0 is a floating-point number"),
        ({"inputs": {"item_tags": [1, [2, "x"]]}}, "$.inputs.item_tags[1][1]", 'id "x" is a string'),
        # Upstream's.
        ({"float_features": [1, 2]}, "$", f"{LENGTHS} is missing"),
        (upstream(float_features=3), "$.float_features", "3 is not a list"),
        (upstream(float_features=[1]), "$.float_features", "1 values, but the model has 2 dense features"),
        (upstream(float_features=[1, "x"]), "$.float_features[1]", 'dense feature "age_days": "x"'),
        (upstream(id_list_features__lengths=[1] * 6), f'$["{LENGTHS}"]', "has 3 sparse features"),
        (upstream(id_list_features__lengths=[1, 1, 1]), f'$["{LENGTHS}"]', "add up to 3"),
        (upstream(id_list_features__lengths=[1, -1, 4]), f'$["{LENGTHS}"][1]', "-1 is not the length"),
        (upstream(id_list_features__lengths=[1, True, 2]), f'$["{LENGTHS}"][1]', "true is not the length"),
        (upstream(id_list_features__lengths=[1, 1, 2.0]), f'$["{LENGTHS}"][2]', "2.0 is not the length"),
        (upstream(id_list_features__lengths=[1, 1, 2**40]), f'$["{LENGTHS}"][2]', "is not the length"),
        (
            upstream(id_list_features__values=[7, 5, 3, 99]),
            f'$["{VALUES}"][3]',
            "id 99 is out of range [0, 50)",
        ),
        (upstream(id_list_features__values=[7, 500, 3, 9]), f'$["{VALUES}"][1]', "id 500 is out of range"),
    ],
)
def test_mistakes_have_a_path_and_a_remedy(ask: Any, body: Any, path: str, said: str) -> None:
    status, answer = ask(body)
    assert status == 400
    assert answer.keys() == {"code", "type", "message", "path"}
    assert (answer["code"], answer["type"], answer["path"]) == (400, "RequestError", path)
    assert said in answer["message"]


@pytest.mark.parametrize(
    ("body", "path"),
    [({"instances": [{}] * 11}, "$.instances"), ({"inputs": {"price": [1] * 11}}, "$.inputs")],
)
def test_too_many_samples(ask: Any, body: Any, path: str) -> None:
    status, answer = ask(body)
    assert (status, answer["code"], answer["type"], answer["path"]) == (413, 413, "LimitError", path)
    assert "11 samples are over max_samples 10" in answer["message"]


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({"instances": [{"item_tags": [1] * 9}]}, "$.instances[0].item_tags"),
        ({"inputs": {"item_tags": [[], [1] * 9]}}, "$.inputs.item_tags[1]"),
        (
            upstream(id_list_features__lengths=[0, 0, 9], id_list_features__values=[1] * 9),
            f'$["{LENGTHS}"][2]',
        ),
    ],
)
def test_too_long_a_bag(ask: Any, body: Any, path: str) -> None:
    status, answer = ask(body)
    assert (status, answer["code"], answer["type"], answer["path"]) == (413, 413, "LimitError", path)
    assert "9 ids in one bag is over max_length 8" in answer["message"]

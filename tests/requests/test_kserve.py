from __future__ import annotations

from typing import Any

import pytest

# The hand-checkable scorer: logit = price + item_id / 100 + (sum of item_tags) / 10.
LOGIT = {"parameters": {"output": "logit"}}


def tensor(name: str, data: list[Any], datatype: str = "INT64", shape: Any = None, **more: Any) -> Any:
    return {"name": name, "shape": shape or [len(data)], "datatype": datatype, "data": data, **more}


PRICE = tensor("price", [1, 0.5], "FP32")


def scores(answer: tuple[int, Any]) -> list[float]:
    status, content = answer
    assert status == 200, content
    return content["outputs"][0]["data"]


def test_the_answer_is_kserves(ask: Any) -> None:
    inputs = [PRICE, tensor("item_id", [20, 50]), tensor("user_id", ["u17", "4"], "BYTES", [2, 1])]
    assert ask({"id": "a-7", "inputs": inputs, **LOGIT}) == (
        200,
        {
            "model_name": "dlrm",
            "id": "a-7",
            "outputs": [{"name": "score", "shape": [2], "datatype": "FP32", "data": [1.2, 1.0]}],
        },
    )
    _, answer = ask({"inputs": inputs, "outputs": [{"name": "score", "parameters": {"binary_data": False}}]})
    assert "id" not in answer
    rows = {"inputs": {"price": [1, 0.5], "item_id": [20, 50]}}
    assert answer["outputs"][0]["data"] == ask(rows)[1]["predictions"]


def test_bags_of_equal_and_of_unequal_length(ask: Any, scorer: Any) -> None:
    bags = [[3, 4], [5, 6]]
    flat = [3, 4, 5, 6]
    for data in (bags, flat):
        assert scores(ask({"inputs": [tensor("item_tags", data, shape=[2, 2])], **LOGIT})) == [0.7, 1.1]
    ragged = [tensor("item_tags", [3, 4, 5]), tensor("item_tags.lengths", [2, 0, 1], "INT32")]
    assert scores(ask({"inputs": ragged, **LOGIT})) == [0.7, 0.0, 0.5]
    assert scores(ask({"inputs": ragged[::-1], **LOGIT})) == [0.7, 0.0, 0.5]
    assert scorer.batches[-1].lengths.tolist()[2] == [2, 0, 1]


def test_empty_bags_and_no_samples(ask: Any) -> None:
    assert scores(ask({"inputs": [tensor("item_tags", [], shape=[2, 0])], **LOGIT})) == [0.0, 0.0]
    assert scores(ask({"inputs": [tensor("item_tags", [[], []], shape=[2, 0])], **LOGIT})) == [0.0, 0.0]
    none = [tensor("item_tags", []), tensor("item_tags.lengths", [])]
    assert scores(ask({"inputs": none})) == []
    assert scores(ask({"inputs": [tensor("price", [], "FP32", [0])]})) == []
    assert scores(ask({"inputs": [tensor("price", [[1], [2]], "FP64", [2, 1])], **LOGIT})) == [1.0, 2.0]


IN = "$.inputs[0]"


@pytest.mark.parametrize(
    ("inputs", "path", "said"),
    [
        ([], "$.inputs", "no tensors of features"),
        ([3], IN, "3 is not a tensor"),
        ([{**PRICE, "dtype": "FP32"}], f"{IN}.dtype", 'did you mean "datatype"?'),
        ([{**PRICE, "name": None}], f"{IN}.name", "name is null"),
        ([{**PRICE, "datatype": "BOOL"}], f"{IN}.datatype", "send one of FP16"),
        ([{**PRICE, "datatype": ["FP32"]}], f"{IN}.datatype", "datatype is a list of 1"),
        ([{**PRICE, "datatype": "BYTES"}], f"{IN}.datatype", 'dense feature "price": datatype BYTES'),
        ([tensor("item_id", [1.0], "FP32")], f"{IN}.datatype", 'sparse feature "item_id": datatype FP32'),
        ([{**PRICE, "shape": None}], f"{IN}.shape", "shape is null"),
        ([{**PRICE, "shape": []}], f"{IN}.shape", "shape is []"),
        ([{**PRICE, "shape": [1, 2, 1]}], f"{IN}.shape", "shape is [1, 2, 1]"),
        ([{**PRICE, "shape": [-1]}], f"{IN}.shape", "shape is [-1]"),
        ([{**PRICE, "shape": [True]}], f"{IN}.shape", "shape is [true]"),
        ([{**PRICE, "shape": [1, 2]}], f"{IN}.shape", "send one number a sample"),
        ([{**PRICE, "shape": [3]}], f"{IN}.data", "data holds 2 values, but shape [3] asks for 3"),
        ([{**PRICE, "data": None}], f"{IN}.data", "data is null"),
        ([{**PRICE, "data": ["1", 2]}], f"{IN}.data[0]", "without quotes"),
        ([tensor("price", [[1], [True]], "FP32", [2, 1])], f"{IN}.data[1][0]", "true is a boolean"),
        ([tensor("item_tags", [[1], [2, 3]], shape=[2, 2])], f"{IN}.data", "differ from shape [2, 2]"),
        ([tensor("item_tags", [[1, 2], [3, 50]], shape=[2, 2])], f"{IN}.data[1][1]", "[0, 50)"),
        ([tensor("item_tags", [1, 2, 3, 50], shape=[2, 2])], f"{IN}.data[3]", "[0, 50)"),
        ([tensor("item_id", [5, 500])], f"{IN}.data[1]", "[0, 200)"),
        ([tensor("item_id", ["x"], "BYTES")], f"{IN}.data[0]", 'id "x" is a string'),
        ([tensor("item_id", [[1, 2]], shape=[1])], f"{IN}.data", "deeper than shape [1]"),
        ([tensor("item_id", [{"ids": [1]}])], f"{IN}.data", "deeper than shape [1]"),
        ([tensor("itemid", [5])], f"{IN}.name", 'did you mean "item_id"?'),
        ([tensor("price.lengths", [5])], f"{IN}.name", "is not a feature"),
        ([tensor("item_id.lengths", [5])], f"{IN}.name", 'no tensor "item_id"; send both'),
        ([PRICE, PRICE], "$.inputs[1]", "is there twice"),
        ([PRICE, tensor("item_id", [1])], "$.inputs[1].shape", 'has 1 samples, but tensor "price" has 2'),
        ([tensor("item_tags", [1]), tensor("item_tags.lengths", [2])], "$.inputs[1].data", "add up to 2"),
        ([tensor("item_tags", [1]), tensor("item_tags.lengths", [-1])], "$.inputs[1].data[0]", "-1 is not"),
        ([tensor("item_tags", [1]), tensor("item_tags.lengths", [1.0])], "$.inputs[1].data[0]", "1.0 is not"),
        (
            [tensor("item_tags", [1], shape=[1, 1]), tensor("item_tags.lengths", [1])],
            "$.inputs[1].shape",
            "both be flat",
        ),
        (
            [{**PRICE, "parameters": {"binary_data_size": 8}}],
            f"{IN}.parameters.binary_data_size",
            "without the header Inference-Header-Content-Length",
        ),
        ([{**PRICE, "parameters": [3]}], f"{IN}.parameters", "is not an object"),
        (
            [{**PRICE, "parameters": {"binary_size": 8}}],
            f"{IN}.parameters.binary_size",
            'did you mean "binary_data_size"?',
        ),
        (
            [{**PRICE, "parameters": {"shared_memory_region": "r"}}],
            f"{IN}.parameters.shared_memory_region",
            "shared memory is not taken",
        ),
    ],
)
def test_mistakes_in_tensors(ask: Any, inputs: Any, path: str, said: str) -> None:
    status, answer = ask({"inputs": inputs})
    assert (status, answer["path"]) == (400, path), answer
    assert said in answer["message"]


@pytest.mark.parametrize(
    ("changes", "path", "said"),
    [
        ({"output": "logit"}, "$.output", "known are inputs, id, parameters, outputs, model_name"),
        ({"instances": []}, "$.instances", "unknown key"),
        ({"id": 7}, "$.id", "7 is not a string"),
        ({"parameters": []}, "$.parameters", "is not an object"),
        ({"parameters": {"output": "odds"}}, "$.parameters.output", '"probability" or "logit"'),
        ({"model_name": 3}, "$.model_name", "3; send a string"),
        ({"parameters": {"time_out": 3}}, "$.parameters.time_out", 'did you mean "timeout"?'),
        ({"parameters": {"binary_data_output": 1}}, "$.parameters.binary_data_output", "not true or false"),
        ({"outputs": {}}, "$.outputs", "is not a list"),
        ({"outputs": [{"name": "logits"}]}, "$.outputs[0]", "the model has one output"),
        (
            {"outputs": [{"name": "score", "parameters": {"binary_data": "yes"}}]},
            "$.outputs[0].parameters.binary_data",
            "not true or false",
        ),
        (
            {"outputs": [{"name": "score", "parameters": {"classification": 3}}]},
            "$.outputs[0].parameters.classification",
            "is not offered",
        ),
        (
            {"outputs": [{"name": "score", "parameters": {"binary": True}}]},
            "$.outputs[0].parameters.binary",
            'did you mean "binary_data"?',
        ),
        ({"outputs": [{"name": "score", "parameters": 3}]}, "$.outputs[0].parameters", "is not an object"),
    ],
)
def test_mistakes_beside_the_tensors(ask: Any, changes: Any, path: str, said: str) -> None:
    status, answer = ask({"inputs": [PRICE], **changes})
    assert (status, answer["path"]) == (400, path), answer
    assert said in answer["message"]


@pytest.mark.parametrize(
    "inputs", [[tensor("price", [1] * 11, "FP32")], [tensor("item_id", [], shape=[2**31 - 1, 0])]]
)
def test_too_many_samples(ask: Any, inputs: Any) -> None:
    status, answer = ask({"inputs": inputs})
    assert (status, answer["type"]) == (413, "LimitError")


def test_what_stock_clients_send_beside_the_tensors(ask: Any) -> None:
    parameters = {
        "sequence_id": 7, "sequence_start": True, "sequence_end": False, "priority": 1, "timeout": 1000,
        "headers": {}, "content_type": "np", "triton_enable_empty_final_response": True, "output": "logit",
    }  # fmt: skip
    body = {"inputs": [{**PRICE, "parameters": {"content_type": "np"}}], "parameters": parameters}
    assert scores(ask({"model_name": "another", "model_version": "3", **body})) == [1.0, 0.5]
    assert scores(ask({"model_name": None, **body})) == [1.0, 0.5]

"""Several outputs: a scorer whose numbers can be checked by hand, asked in every shape."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from support.handed import handle
from support.several_outputs import CLICK, PURCHASE, TOWER, ByHand, ask, content, declared, sigmoid

from dlrm_factory.batch import FeatureBatch, SharedContext
from dlrm_factory.requests.answers import Answer
from dlrm_factory.requests.service import DLRMService

ARROW = "application/vnd.apache.arrow.stream"


@pytest.fixture
def scorer() -> ByHand:
    return ByHand(declared(CLICK, PURCHASE, TOWER))


@pytest.fixture
def service(scorer: ByHand) -> DLRMService:
    return DLRMService(scorer, model_name="shop")


def both(item: int) -> dict[str, Any]:
    return {"click": pytest.approx(sigmoid(item / 10)), "purchase": pytest.approx(sigmoid(item / 10 - 1))}


BODIES: Sequence[dict[str, Any]] = (
    {"instances": [{"item": 5}]},
    {"inputs": {"item": [5]}},
    {"instances": [{"item": 5}, {"item": 20, "history": [1, 2]}]},
    {"inputs": {"item": [5, 20], "history": [[], [1, 2]]}},
    {"inputs": {"item": [5, 20], "price": [None, 1.5]}},
)


@pytest.mark.parametrize("body", BODIES)
def test_several_are_an_object_by_name_and_one_is_its_number(service: DLRMService, body: Any) -> None:
    items = [5, 20][: 1 if body in BODIES[:2] else 2]
    assert content(service, body) == {"predictions": [both(item) for item in items]}
    swapped = content(service, {**body, "outputs": ["purchase", "click"]})["predictions"]
    assert [list(each) for each in swapped] == [["purchase", "click"]] * len(items)
    alone = content(service, {**body, "outputs": ["purchase"]})["predictions"]
    assert alone == [each["purchase"] for each in swapped]
    logits = content(service, {**body, "outputs": ["purchase", "tower"], "output": "logit"})["predictions"]
    assert [each["purchase"] for each in logits] == pytest.approx([item / 10 - 1 for item in items], abs=1e-6)
    assert logits[0]["tower"] == [0.0, 0.0, 0.5]
    assert content(service, {**body, "outputs": ["tower"]})["predictions"][0] == [0.0, 0.0, 0.5]


def test_fast_readers_take_what_the_reference_takes(service: DLRMService) -> None:
    for body in BODIES:
        for outputs in ({}, {"outputs": ["purchase"]}, {"outputs": ["tower", "click"]}):
            (fast,) = ask(service, {**body, **outputs})
            (slow,) = handle(service, [{"body": {**body, **outputs}}])  # an object is read by the reference
            assert fast.body == slow.body
    counts = service.read_counts
    assert counts.fast == counts.reference == len(BODIES) * 3


def test_requests_of_other_outputs_in_one_batch(service: DLRMService) -> None:
    bodies = [
        {**BODIES[i % 5], **({"outputs": names} if (names := [[], ["tower"], ["click"]][i % 3]) else {})}
        for i in range(15)
    ]
    together = ask(service, *bodies)
    assert together == [ask(service, body)[0] for body in bodies]


def test_the_flat_shape_has_one_score(service: DLRMService) -> None:
    flat = {
        "float_features": [1, 2],
        "id_list_features.lengths": [1, 2],
        "id_list_features.values": [5, 7, 8],
    }
    assert content(service, flat) == {"score": both(5)}
    assert content(service, {**flat, "outputs": ["click"]}) == {"score": pytest.approx(sigmoid(0.5))}
    assert content(service, {**flat, "outputs": ["tower"]}) == {"score": [0.2, 1.5, 0.5]}


def test_the_default_outputs_are_declared() -> None:
    service = DLRMService(ByHand(declared(CLICK, PURCHASE, TOWER, outputs=["purchase"])))
    assert content(service, BODIES[0]) == {"predictions": [pytest.approx(sigmoid(-0.5))]}
    vectors = DLRMService(ByHand(declared(TOWER)))
    assert content(vectors, BODIES[2]) == {"predictions": [[0.0, 0.0, 0.5], [0.2, 0.3, 2.0]]}
    assert content(vectors, {"instances": []}) == {"predictions": []}


@pytest.mark.parametrize(
    ("outputs", "path", "said"),
    [
        (["click", "purchas"], "$.outputs[1]", 'not an output of this model; did you mean "purchase"?'),
        (["x"], "$.outputs[0]", '"x" is not an output of this model; it has click, purchase, tower'),
        ([3], "$.outputs[0]", "3 is not an output of this model"),
        (["click", "click"], "$.outputs[1]", '"click" is there twice'),
        ([], "$.outputs", "outputs is an empty list; send a list of names, of click, purchase, tower"),
        ("click", "$.outputs", 'outputs is "click"; send a list'),
        ({"click": 1}, "$.outputs", "outputs is an object"),
    ],
)
@pytest.mark.parametrize("body", [*BODIES[:4], {"candidates": [{"item": 1}]}])
def test_mistakes_in_outputs(service: DLRMService, body: Any, outputs: Any, path: str, said: str) -> None:
    (answer,) = ask(service, {**body, "outputs": outputs})
    found = json.loads(answer.body)
    assert (answer.status, found["path"]) == (400, path), found
    assert said in found["message"]


def test_null_asks_for_the_default(service: DLRMService) -> None:
    assert content(service, {**BODIES[0], "outputs": None}) == content(service, BODIES[0])


def test_an_output_that_is_not_finite_spoils_only_answers_that_hold_it(
    service: DLRMService, scorer: ByHand
) -> None:
    scorer.spoilt = {"purchase": np.nan, "tower": np.inf}
    rows = {"instances": [{"item": 5}, {"item": 13}]}
    names = [["click"], ["purchase"], ["click", "purchase"], ["tower"]]
    statuses = [
        [answer.status for answer in ask(service, *({**body, "outputs": each} for each in names))]
        for body in (rows, {"instances": [{"item": 13}]}, {"instances": [{"item": 5}]})
    ]
    assert statuses == [[200, 500, 500, 500]] * 2 + [[200] * 4]
    # The probability of an infinite logit is a number, the logit is none.
    scorer.spoilt = {"purchase": np.inf}
    plain, logit = ask(service, rows, {**rows, "output": "logit"})
    assert (plain.status, logit.status) == (200, 500)


def test_answers_in_arrow_have_a_column_an_output(service: DLRMService) -> None:
    def arrow(body: Any) -> Any:
        (answer,) = ask(service, body, Accept=ARROW)
        assert answer.content_type == ARROW
        return pa.ipc.open_stream(answer.body).read_all()

    rows = BODIES[3]
    table = arrow(rows)
    assert table.schema == pa.schema({"click": pa.float32(), "purchase": pa.float32()})
    assert table.to_pylist() == [
        {name: pytest.approx(value.expected, abs=1e-6) for name, value in both(item).items()}
        for item in (5, 20)
    ]
    table = arrow({**rows, "outputs": ["tower", "click"]})
    assert table.schema == pa.schema({"tower": pa.list_(pa.float32(), 3), "click": pa.float32()})
    assert table["tower"].to_pylist()[1] == pytest.approx([0.2, 0.3, 2.0])
    assert arrow({"instances": [], "outputs": ["tower"]})["tower"].type == pa.list_(pa.float32(), 3)


def stream(table: Any, **metadata: str) -> bytes:
    table = table.replace_schema_metadata(metadata)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def test_an_arrow_request_says_outputs_in_its_metadata(service: DLRMService) -> None:
    def send(**metadata: str) -> Answer:
        table = pa.table({"item": [5, 20], "history": [[], [1, 2]]})
        return handle(service, [{"body": stream(table, **metadata)}])[0]

    for outputs in (["click"], ["tower", "purchase"]):
        expected = content(service, {**BODIES[3], "outputs": outputs, "output": "logit"})
        assert json.loads(send(outputs=json.dumps(outputs), output="logit").body) == expected
    assert json.loads(send().body) == content(service, BODIES[3])
    for wrong, path in (('["clik"]', "$.outputs[0]"), ("click", "$.outputs"), ("[", "$.outputs")):
        answer = send(outputs=wrong)
        assert (answer.status, json.loads(answer.body)["path"]) == (400, path)


KSERVE = {
    "inputs": [
        {"name": "item", "shape": [2], "datatype": "INT64", "data": [5, 20]},
        {"name": "history", "shape": [2], "datatype": "INT64", "data": [1, 2]},
        {"name": "history.lengths", "shape": [2], "datatype": "INT64", "data": [0, 2]},
    ]
}


def test_kserve_has_a_tensor_an_output(service: DLRMService) -> None:
    click, purchase = content(service, KSERVE)["outputs"]
    assert (click["name"], click["shape"], click["datatype"]) == ("click", [2], "FP32")
    assert purchase["data"] == pytest.approx([sigmoid(-0.5), sigmoid(1.0)])
    chosen = content(service, {**KSERVE, "outputs": [{"name": "tower"}, {"name": "click"}]})["outputs"]
    assert chosen == [
        {"name": "tower", "shape": [2, 3], "datatype": "FP32", "data": [0.0, 0.0, 0.5, 0.2, 0.3, 2.0]},
        click,
    ]
    for wanted, said in (
        ({"name": "clik"}, 'did you mean "click"?'),
        ("click", "is not an output; ask for"),
        ({}, "null is not an output of this model; it has click, purchase, tower"),
    ):
        (answer,) = ask(service, {**KSERVE, "outputs": [{"name": "click"}, wanted]})
        found = json.loads(answer.body)
        assert (answer.status, found["path"]) == (400, "$.outputs[1]")
        assert said in found["message"]


def test_kserve_gives_some_in_binary(service: DLRMService) -> None:
    wanted = [
        {"name": "tower", "parameters": {"binary_data": True}},
        {"name": "click"},
        {"name": "purchase", "parameters": {"binary_data": True}},
    ]
    (answer,) = ask(service, {**KSERVE, "outputs": wanted})
    head = int(answer.headers["Inference-Header-Content-Length"])
    outputs = json.loads(answer.body[:head])["outputs"]
    assert [output.get("parameters") for output in outputs] == [
        {"binary_data_size": 24},
        None,
        {"binary_data_size": 8},
    ]
    numbers = np.frombuffer(answer.body[head:], dtype="<f4")
    np.testing.assert_allclose(numbers[:6], [0, 0, 0.5, 0.2, 0.3, 2.0], atol=1e-6)
    np.testing.assert_allclose(numbers[6:], [sigmoid(-0.5), sigmoid(1.0)], atol=1e-6)
    assert len(outputs[1]["data"]) == 2


def test_explanations_have_a_contribution_an_output(service: DLRMService) -> None:
    body = {"instances": [{"item": 5, "history": [1]}], "output": "logit"}
    (found,) = content(service, body, explain="True")["explanations"]
    assert found["score"] == pytest.approx({"click": 0.5, "purchase": -0.5})
    assert found["contributions"]["item"] == pytest.approx({"click": 0.5, "purchase": 0.5})
    assert found["contributions"]["history"] == {"click": 0.0, "purchase": 0.0}
    (one,) = content(service, {**body, "outputs": ["purchase"]}, explain="True")["explanations"]
    assert (one["score"], one["contributions"]["item"]) == (-0.5, pytest.approx(0.5))
    (answer,) = ask(service, {**body, "outputs": ["click", "tower"]}, explain="True")
    assert (answer.status, json.loads(answer.body)["path"]) == (400, "$.outputs")


def test_a_sequence_feature_is_explained() -> None:
    class Reads(ByHand):
        def outputs(self, batch: FeatureBatch, shared: SharedContext | None = None) -> np.ndarray:
            return batch.lengths[1][:, None].astype(np.float32)

    service = DLRMService(Reads(declared(CLICK)))
    body = {"instances": [{"item": 5, "history": [1, 2]}], "output": "logit"}
    (found,) = content(service, body, explain="True")["explanations"]
    assert found == {
        "score": 2.0,
        "contributions": {"price": 0.0, "age-days": 0.0, "item": 0.0, "history": 2.0},
    }


def test_the_answer_of_many_vectors_is_limited() -> None:
    size = 4096
    tower = msgspec.structs.replace(TOWER, size=size)
    declaration = declared(CLICK, tower, max_samples=5000, batch_size=64)

    class Zeros(ByHand):
        def outputs(self, batch: FeatureBatch, shared: SharedContext | None = None) -> np.ndarray:
            return np.zeros((len(batch), 1 + size), dtype=np.float32)

    service = DLRMService(Zeros(declaration))
    most = 4_000_000 // 64 // size
    for samples, status in ((most, 200), (most + 1, 413)):
        body = {"inputs": {"item": [1] * samples}}
        (answer,) = ask(service, {**body, "outputs": ["tower"]})
        assert answer.status == status
        assert ask(service, body)[0].status == 200
    found = json.loads(answer.body)
    assert (found["type"], found["path"]) == ("LimitError", "$.outputs")
    assert f"send at most {most} samples" in found["message"]


def test_the_description_lists_outputs_and_names_the_module(scorer: ByHand) -> None:
    declaration = declared(CLICK, PURCHASE, TOWER, rank_by="click * price", outputs=["click", "tower"])
    architecture = msgspec.structs.replace(declaration.architecture, sources={"my_net.py": "secret = 1"})
    declaration = msgspec.structs.replace(declaration, architecture=architecture)
    (answer,) = handle(DLRMService(ByHand(declaration)), [{}], [{"describe": "True"}])
    found = json.loads(answer.body)
    assert found["outputs"] == [
        {"name": "click", "datatype": "FP32", "shape": [-1]},
        {"name": "purchase", "datatype": "FP32", "shape": [-1]},
        {"name": "tower", "datatype": "FP32", "shape": [-1, 3]},
    ]
    assert found["default_outputs"] == ["click", "tower"]
    assert found["rank_by"] == "click * price"
    assert found["architecture"] == {"module": "my_net.py:MyNet", "arguments": {"hidden": 8}, "files": []}
    assert b"secret" not in answer.body

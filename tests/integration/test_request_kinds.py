"""Every address that TorchServe leads to the handler: predictions, rankings, explanations, KServe, description."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from dlrm_factory.config import tiny
from dlrm_factory.tools.server import RunningServer, find_endpoint

pytestmark = pytest.mark.integration

ROW = {"price": 0.5, "user_id": "u17", "item_id": 12, "item_tags": [3, 9]}
TENSORS = [
    {"name": "price", "shape": [1], "datatype": "FP32", "data": [0.5]},
    {"name": "user_id", "shape": [1], "datatype": "BYTES", "data": ["u17"]},
    {"name": "item_id", "shape": [1], "datatype": "INT64", "data": [12]},
    {"name": "item_tags", "shape": [1, 2], "datatype": "INT64", "data": [[3, 9]]},
]


def post(client: httpx.Client, path: str, body: Any) -> Any:
    headers = {"Content-Type": "application/json"}
    response = client.post(path, content=json.dumps(body), headers=headers)
    assert response.status_code == 200, response.text
    return response.json()


@pytest.fixture(scope="module")
def score(client: httpx.Client) -> float:
    return post(client, "/predictions/tiny", {"instances": [ROW]})["predictions"][0]


def test_ranking(client: httpx.Client, score: float) -> None:
    context = {"user_id": "u17", "price": 0.5}
    candidates = [{"id": "other", "item_id": 1}, {"id": "same", "item_id": 12, "item_tags": [3, 9]}]
    ranking = post(client, "/predictions/tiny", {"context": context, "candidates": candidates})["ranking"]
    assert {entry["id"]: entry["index"] for entry in ranking} == {"other": 0, "same": 1}
    assert next(e["score"] for e in ranking if e["id"] == "same") == pytest.approx(score, abs=1e-6)
    assert [entry["score"] for entry in ranking] == sorted((e["score"] for e in ranking), reverse=True)


def test_kserve_v1(client: httpx.Client, score: float) -> None:
    found = post(client, "/v1/models/tiny:predict", {"instances": [ROW]})
    assert found["predictions"] == pytest.approx([score], abs=1e-6)


def test_kserve_v2(client: httpx.Client, score: float) -> None:
    found = post(client, "/v2/models/tiny/infer", {"id": "a-7", "inputs": TENSORS})
    assert (found["model_name"], found["model_version"], found["id"]) == ("tiny", "2.1", "a-7")
    (output,) = found["outputs"]
    assert (output["name"], output["shape"], output["datatype"]) == ("score", [1], "FP32")
    assert output["data"] == pytest.approx([score], abs=1e-6)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/explanations/tiny", {"instances": [ROW]}),
        ("/explanations/tiny/2.1", {"inputs": {name: [value] for name, value in ROW.items()}}),
        ("/v1/models/tiny:explain", {"instances": [ROW]}),
        ("/v2/models/tiny/explain", {"inputs": TENSORS}),
        ("/explanations/tiny", {"context": {"user_id": "u17"}, "candidates": [ROW]}),
    ],
)
def test_explanations(client: httpx.Client, score: float, path: str, body: Any) -> None:
    if "candidates" in body:
        body["candidates"] = [{name: value for name, value in ROW.items() if name != "user_id"}]
    (one,) = post(client, path, body)["explanations"]
    assert one["score"] == pytest.approx(score, abs=1e-6)
    assert list(one["contributions"]) == [*tiny().dense_names, *tiny().sparse_names]
    assert one["contributions"]["age_days"] == 0
    assert all(one["contributions"][name] != 0 for name in ROW)


def test_predictions_and_explanations_at_once(client: httpx.Client, score: float) -> None:
    def one(i: int) -> Any:
        path = "/explanations/tiny" if i % 2 else "/predictions/tiny"
        return post(client, path, {"instances": [ROW]})

    with ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(one, range(100)))
    for i, answer in enumerate(answers):
        found = answer["explanations"][0]["score"] if i % 2 else answer["predictions"][0]
        assert found == pytest.approx(score, abs=1e-5)


def test_description(tiny_server: RunningServer) -> None:
    endpoint = find_endpoint("management", run_dir=tiny_server.run_dir.root, url=None, token=None)
    with httpx.Client(base_url=endpoint.url, auth=endpoint.auth, timeout=60, trust_env=False) as client:
        (version,) = client.get("/models/tiny", params={"customized": "true"}).raise_for_status().json()
        ready = client.get("/v1/models/tiny").raise_for_status().json()
    described = version["customizedMetadata"]
    assert (described["name"], described["versions"]) == ("tiny", ["2.1"])
    assert [tensor["name"] for tensor in described["inputs"]] == [*tiny().dense_names, *tiny().sparse_names]
    assert {table["name"] for table in described["plan"]["tables"]} == {t.name for t in tiny().tables}
    assert ready == {"name": "tiny", "ready": True}


def test_a_client_cannot_turn_a_prediction_into_something_else(client: httpx.Client, score: float) -> None:
    headers = {"Content-Type": "application/json", "explain": "True", "describe": "True"}
    response = client.post("/predictions/tiny", content=json.dumps({"instances": [ROW]}), headers=headers)
    assert response.json()["predictions"] == pytest.approx([score], abs=1e-6)

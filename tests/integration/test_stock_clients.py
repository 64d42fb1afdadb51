"""Clients as KServe and Triton publish them, against the real TorchServe."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

pytestmark = pytest.mark.integration

COLUMNS = {
    "price": [0.5, 2.0, -1.0],
    "user_id": ["u17", "ü", ""],
    "item_id": [12, 0, 199],
    "item_tags": [[3, 9], [1, 2], [0, 49]],
}


@pytest.fixture(scope="module")
def expected(client: httpx.Client) -> list[float]:
    found = client.post("/predictions/tiny", json={"inputs": COLUMNS}).raise_for_status().json()
    return found["predictions"]


def call(client: httpx.Client, inputs: list[Any], model: str = "tiny", **more: Any) -> Any:
    """tritonclient.http's answer, with the token that ``client`` holds."""
    assert client.auth is not None
    authorised = next(client.auth.sync_auth_flow(client.build_request("GET", "/ping")))
    headers = {"Authorization": authorised.headers["Authorization"]}
    with triton.InferenceServerClient(urlsplit(str(client.base_url)).netloc, network_timeout=60) as stock:
        return stock.infer(model, inputs, headers=headers, **more)


def tensors(binary: bool = True) -> list[Any]:
    arrays = {
        "price": np.array(COLUMNS["price"], dtype=np.float32),
        "user_id": np.array(COLUMNS["user_id"], dtype=np.object_),
        "item_id": np.array(COLUMNS["item_id"], dtype=np.int64),
        "item_tags": np.array(COLUMNS["item_tags"], dtype=np.int32),
    }
    types = {"price": "FP32", "user_id": "BYTES", "item_id": "INT64", "item_tags": "INT32"}
    inputs = []
    for name, array in arrays.items():
        inputs.append(triton.InferInput(name, list(array.shape), types[name]))
        inputs[-1].set_data_from_numpy(array, binary_data=binary)
    return inputs


@pytest.mark.parametrize("binary", [True, False])
def test_triton_with_its_defaults(client: httpx.Client, expected: list[float], binary: bool) -> None:
    result = call(client, tensors(binary))
    assert result.as_numpy("score").dtype == np.float32
    assert result.as_numpy("score") == pytest.approx(expected, abs=1e-6)
    assert result.get_response()["model_version"] == "2.1"


@pytest.mark.parametrize("binary", [True, False])
def test_triton_with_everything(client: httpx.Client, expected: list[float], binary: bool) -> None:
    result = call(
        client,
        tensors(),
        outputs=[triton.InferRequestedOutput("score", binary_data=binary)],
        request_id="a-7",
        sequence_id=7,
        sequence_start=True,
        sequence_end=True,
        priority=1,
        timeout=1000,
        parameters={"output": "probability"},
    )
    assert result.as_numpy("score") == pytest.approx(expected, abs=1e-6)
    assert result.get_response()["id"] == "a-7"


def test_triton_reads_our_errors(client: httpx.Client) -> None:
    wrong = triton.InferInput("item_id", [1], "INT64")
    wrong.set_data_from_numpy(np.array([500]))
    with pytest.raises(InferenceServerException, match="id 500 is out of range") as raised:
        call(client, [wrong])
    assert raised.value.status() == "400"


def test_binary_and_json_requests_at_once(client: httpx.Client, expected: list[float]) -> None:
    """Answers with headers of their own, in one batch with others."""

    def one(i: int) -> Any:
        if i % 3 == 0:
            return call(client, tensors()).as_numpy("score").tolist()
        if i % 3 == 1:
            return client.post("/predictions/tiny", json={"inputs": COLUMNS}).json()["predictions"]
        return client.post("/v2/models/tiny/infer", json={"inputs": [{"name": 3}]}).json()["code"]

    with ThreadPoolExecutor(12) as threads:
        answers = list(threads.map(one, range(60)))
    for i, answer in enumerate(answers):
        assert answer == (400 if i % 3 == 2 else pytest.approx(expected, abs=1e-5))


def test_kserves_bytes(client: httpx.Client, expected: list[float]) -> None:
    """kserve 0.21 needs a web framework and older protobuf and psutil, so these are the bytes its client makes."""
    raw = (
        np.array(COLUMNS["price"], dtype="<f4").tobytes(),
        np.array(COLUMNS["item_id"], dtype="<i8").tobytes(),
    )
    size = [{"binary_data_size": len(data)} for data in raw]
    inputs = [
        {"name": "price", "shape": [3], "datatype": "FP32", "parameters": size[0]},
        {"name": "item_id", "shape": [3], "datatype": "INT64", "parameters": size[1]},
        {"name": "user_id", "shape": [3], "datatype": "BYTES", "data": COLUMNS["user_id"]},
        {"name": "item_tags", "shape": [3, 2], "datatype": "INT64", "data": [3, 9, 1, 2, 0, 49]},
    ]
    head = json.dumps({"id": "a-7", "model_name": "tiny", "inputs": inputs}).encode()
    headers = {
        "content-type": "application/octet-stream",
        "inference-header-content-length": str(len(head)),
    }
    url = "/v2/models/tiny/infer"
    found = client.post(url, content=head + b"".join(raw), headers=headers).raise_for_status().json()
    assert (found["model_name"], found["id"]) == ("tiny", "a-7")
    assert found["outputs"][0]["data"] == pytest.approx(expected, abs=1e-6)

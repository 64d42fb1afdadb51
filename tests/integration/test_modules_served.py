"""Dense nets of the user's own behind TorchServe: what HTTP answers is what NumPy finds by hand."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import msgspec
import numpy as np
import pytest
from support.depth import DEPTH
from support.grpc_calls import Stubs, bearer, compile_protos, stubs
from support.nets import outputs_by_hand, trusted
from support.server import ask, inference_client, serving, uncompiled

from dlrm_factory.config import DLRMDeclaration, ModuleArchitecture, ServingOptions
from dlrm_factory.config.trust import trust_code
from dlrm_factory.features import FeatureEncoder
from dlrm_factory.tools.archive.sealing import archive_model
from dlrm_factory.tools.bench.score import RandomWeights
from dlrm_factory.tools.server import RunningServer
from dlrm_factory.weights.sealed import seal_weights

pytestmark = pytest.mark.integration

# A worker each.
NETS = ["din", "two_towers"] if DEPTH != "deep" else ["din", "two_towers", "mmoe", "dcn_v2", "deepfm"]


# MMoE that fails on some prices, or refuses them.
MOODY = """
import torch
from dlrm_factory import RequestError
from .mmoe import MMoE

class Moody(MMoE):
    def forward(self, dense, pooled):
        if (dense == 13).any():
            raise ValueError("thirteen")
        if (dense == 14).any():
            raise RequestError("dense feature \\"price\\": 14 is not sold")
        return super().forward(dense, pooled)
"""


def answering_all(declaration: DLRMDeclaration) -> DLRMDeclaration:
    """``declaration`` with every output in the answers to requests that choose none."""
    names = [output.name for output in declaration.all_outputs]
    return msgspec.structs.replace(declaration, serving=ServingOptions(outputs=names))


def moody() -> DLRMDeclaration:
    declaration = trusted("mmoe")
    module = declaration.module
    assert module is not None
    assert module.sources is not None
    architecture = ModuleArchitecture(
        module="moody.py:Moody", files=["mmoe.py"], sources={**module.sources, "moody.py": MOODY}
    )
    serving = ServingOptions(batch_size=16, max_batch_delay_ms=50)
    found = msgspec.structs.replace(declaration, architecture=architecture, serving=serving)
    trust_code(found)
    return found


@pytest.fixture(scope="module")
def weights() -> dict[str, RandomWeights]:
    models = {name: trusted(name) for name in NETS}
    models |= {"whole": answering_all(trusted("two_towers")), "moody": moody()}
    return {name: RandomWeights(uncompiled(each)) for name, each in models.items()}


@pytest.fixture(scope="module")
def server(
    weights: dict[str, RandomWeights], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("nets")
    (folder / "store").mkdir()
    for name, each in weights.items():
        seal_weights(each, folder / name)
        archive_model(folder / name, folder / "store" / f"{name}.mar", model_name=name)
    models = [f"{name}={name}.mar" for name in weights]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TS_OPEN_INFERENCE_PROTOCOL", "oip")
        with serving(folder / "store", *models, run_dir=folder / "run") as running:
            yield running


@pytest.fixture(scope="module")
def client(server: RunningServer) -> Iterator[httpx.Client]:
    with inference_client(server) as made:
        yield made


def rows_of(declaration: DLRMDeclaration, count: int) -> list[dict[str, object]]:
    random = np.random.default_rng(8)
    rows = []
    for _ in range(count):
        row: dict[str, object] = {name: round(float(random.normal()), 3) for name in declaration.dense_names}
        for feature in declaration.sparse_features:
            size = int(random.integers(0, min(feature.max_length, 40) + 1))
            most = declaration.table(feature.table).num_embeddings
            row[feature.name] = random.integers(0, most, size).tolist()
        rows.append(row)
    return rows


@pytest.mark.parametrize("name", NETS)
def test_answers_are_those_by_hand_alone_and_together(
    name: str, client: httpx.Client, weights: dict[str, RandomWeights]
) -> None:
    declaration = weights[name].declaration
    rows = rows_of(declaration, 5)
    columns = {key: [row[key] for row in rows] for key in rows[0]}
    batch = FeatureEncoder(declaration, None).encode(columns, len(rows))
    expected = outputs_by_hand(name, declaration, weights[name], batch)
    names = [output.name for output in declaration.all_outputs]
    asked = {"outputs": names} if declaration.outputs else {}
    together = ask(client, name, {"instances": rows, **asked})["predictions"]
    alone = [ask(client, name, {"instances": [row], **asked})["predictions"][0] for row in rows]
    for found in (together, alone):
        for i, prediction in enumerate(found):
            values = prediction if isinstance(prediction, dict) else {names[0]: prediction}
            for output in declaration.all_outputs:
                by_hand = expected[i, declaration.columns_of(output.name)]
                if output.kind == "probability":
                    by_hand = 1 / (1 + np.exp(-by_hand))
                assert np.abs(np.reshape(values[output.name], -1) - by_hand).max() < 1e-5


TENSORS: Any = [
    {"name": "user", "shape": [2], "datatype": "INT64", "data": [5, 7]},
    {"name": "tags", "shape": [2, 2], "datatype": "INT64", "data": [1, 2, 3, 9]},
    {"name": "item", "shape": [2], "datatype": "INT64", "data": [12, 190]},
]
ROWS = [{"user": 5, "tags": [1, 2], "item": 12}, {"user": 7, "tags": [3, 9], "item": 190}]
COLUMNS = {"click": 1, "user": 6, "item": 6}


def infer(client: httpx.Client, body: Any) -> httpx.Response:
    headers = {"Content-Type": "application/json"}
    answer = client.post("/v2/models/whole/infer", content=json.dumps(body), headers=headers)
    assert answer.status_code == 200, answer.text
    return answer


def numbers(found: Any) -> list[list[float]]:
    return [np.reshape([row[name] for row in found], -1).tolist() for name in COLUMNS]


def test_kserve_answers_with_a_tensor_an_output(client: httpx.Client) -> None:
    rows = ask(client, "whole", {"instances": ROWS})["predictions"]
    expected = dict(zip(COLUMNS, numbers(rows), strict=True))
    answer = infer(client, {"inputs": TENSORS}).json()
    assert [each["name"] for each in answer["outputs"]] == list(COLUMNS)
    for each in answer["outputs"]:
        size = COLUMNS[each["name"]]
        assert each["shape"] == ([2] if size == 1 else [2, size])
        assert each["data"] == pytest.approx(expected[each["name"]], abs=1e-6)
    # Some in binary, in another order.
    wanted = [{"name": "item", "parameters": {"binary_data": True}}, {"name": "click"}]
    binary = infer(client, {"inputs": TENSORS, "outputs": wanted})
    head = int(binary.headers["Inference-Header-Content-Length"])
    item, click = json.loads(binary.content[:head])["outputs"]
    assert (item["name"], item["shape"], item["parameters"]) == ("item", [2, 6], {"binary_data_size": 48})
    assert click["data"] == pytest.approx(expected["click"], abs=1e-6)
    assert np.frombuffer(binary.content[head:], "<f4") == pytest.approx(expected["item"], abs=1e-6)


def test_model_infer_answers_with_a_tensor_an_output(
    server: RunningServer, client: httpx.Client, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("protos")
    compile_protos(folder)
    made = Stubs(folder)
    token = bearer(json.loads(server.run_dir.key_file.read_text())["inference"]["key"])
    inputs = [
        made.open.ModelInferRequest.InferInputTensor(
            **{key: each[key] for key in ("name", "shape", "datatype")},
            contents=made.open.InferTensorContents(int64_contents=each["data"]),
        )
        for each in TENSORS
    ]
    rows = ask(client, "whole", {"instances": ROWS})["predictions"]
    request = made.open.ModelInferRequest(model_name="whole", id="a", inputs=inputs)
    with stubs(server.state.grpc_inference) as channel:
        answer = made.open_inference(channel).ModelInfer(request, metadata=token, timeout=60)
    assert [(each.name, each.datatype, list(each.shape)) for each in answer.outputs] == [
        ("click", "FP32", [2]),
        ("user", "FP32", [2, 6]),
        ("item", "FP32", [2, 6]),
    ]
    for each, expected in zip(answer.outputs, numbers(rows), strict=True):
        assert list(each.contents.fp32_contents) == pytest.approx(expected, abs=1e-6)


def test_a_module_that_fails_on_a_request_fails_it_alone(client: httpx.Client) -> None:
    def post(price: float) -> tuple[int, Any]:
        answer = client.post(
            "/predictions/moody",
            content=json.dumps({"instances": [{"price": price, "user": 4}], "outputs": ["click"]}),
            headers={"Content-Type": "application/json"},
        )
        return answer.status_code, answer.json()

    prices = [1, 13, 2, 14, 3] * 8
    with ThreadPoolExecutor(len(prices)) as pool:
        together = list(pool.map(post, prices))
    alone = {price: post(price) for price in set(prices)}
    assert {price: status for price, (status, _) in alone.items()} == {
        1: 200,
        2: 200,
        3: 200,
        13: 500,
        14: 400,
    }
    assert "Moody cannot score: moody.py:9 (forward): ValueError: thirteen" in alone[13][1]["message"]
    assert alone[14][1]["message"] == 'dense feature "price": 14 is not sold'
    for price, (status, found) in zip(prices, together, strict=True):
        expected_status, expected = alone[price]
        assert status == expected_status
        if status == 200:
            assert found["predictions"] == pytest.approx(expected["predictions"], abs=1e-6)
        else:
            assert found == expected

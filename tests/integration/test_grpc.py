"""Calls by gRPC: each is answered or refused, and none ends a worker or holds up the others."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import httpx
import pytest
from support.grpc_calls import Stubs, bearer, compile_protos, stubs
from support.server import serving_tiny

from dlrm_factory.errors import ServingError
from dlrm_factory.tools.server import LogMarks, RunningServer, management_client, scale_model

pytestmark = pytest.mark.integration

ROW = {"price": 0.5, "user_id": "u17", "item_id": 12, "item_tags": [3, 9]}
BODY = json.dumps({"instances": [ROW]}).encode()
SECONDS = 60
REFUSALS = (grpc.StatusCode.UNKNOWN,)  # by TorchServe itself
MALFORMED = [
    {},
    {"body": b""},
    {"body": b"\xff\xfe"},
    {"body": b'{"instances": [{"item_id": 1500}]}'},
    {"body": b'{"instances": '},
    {"other": b"{}"},
    {"body": b"{}", "data": b"{}"},
    {"explain": b"True", "describe": b"True"},
    {"ts_request_sequence_id": b"x"},
    {"größe \n": b"\x00" * 1000},
    {"content-type": b"application/json", "body": b"[]"},
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("grpc")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TS_OPEN_INFERENCE_PROTOCOL", "oip")
        with serving_tiny(folder) as running:
            yield running


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Stubs:
    folder = tmp_path_factory.mktemp("protos")
    compile_protos(folder)
    return Stubs(folder)


@pytest.fixture(scope="module")
def keys(server: RunningServer) -> dict[str, str]:
    found = json.loads(server.run_dir.key_file.read_text())
    return {name: found[name]["key"] for name in ("inference", "management", "API")}


@pytest.fixture(scope="module")
def token(keys: dict[str, str]) -> tuple[tuple[str, str], ...]:
    return bearer(keys["inference"])


@pytest.fixture
def channel(server: RunningServer) -> Iterator[grpc.Channel]:
    with stubs(server.state.grpc_inference) as channel:
        yield channel


@pytest.fixture(scope="module")
def score(client: httpx.Client) -> float:
    answer = client.post("/predictions/tiny", content=BODY, headers={"Content-Type": "application/json"})
    return answer.json()["predictions"][0]


@pytest.fixture(autouse=True)
def same_worker(
    server: RunningServer, client: httpx.Client, score: float, made: Stubs, token: Any
) -> Iterator[None]:
    """After each test the worker is the same, and answers by HTTP and by gRPC."""
    before = pids(server)
    yield
    answer = client.post("/predictions/tiny", content=BODY, headers={"Content-Type": "application/json"})
    assert answer.json() == {"predictions": [score]}
    with stubs(server.state.grpc_inference) as channel:
        request = made.inference.PredictionsRequest(model_name="tiny", input={"body": BODY})
        found = made.predictions(channel).Predictions(request, metadata=token, timeout=SECONDS)
    assert json.loads(found.prediction) == {"predictions": [score]}
    assert pids(server) == before


def pids(server: RunningServer) -> list[int]:
    with management_client(server.run_dir, server.state) as management:
        return [worker.pid for worker in management.workers("tiny")]


def asked(made: Stubs, body: bytes | None = BODY, **fields: Any) -> Any:
    fields = {"model_name": "tiny", "input": {} if body is None else {"body": body}, **fields}
    return made.inference.PredictionsRequest(**fields)


def test_addresses_are_told(server: RunningServer) -> None:
    written = json.loads(server.run_dir.state_file.read_text())
    assert written["grpc_inference"] == server.state.grpc_inference
    assert written["grpc_management"] == server.state.grpc_management
    assert int(server.state.grpc_inference.rpartition(":")[2]) > 0


def test_each_address_asks_for_its_own_token(
    server: RunningServer, made: Stubs, keys: dict[str, str]
) -> None:
    def status(call: Any, request: Any, key: str | None) -> grpc.StatusCode:
        try:
            call(request, metadata=bearer(keys[key]) if key else (), timeout=SECONDS)
        except grpc.RpcError as error:
            return error.code()
        return grpc.StatusCode.OK

    refused = grpc.StatusCode.PERMISSION_DENIED
    empty = made.inference_rpc.google_dot_protobuf_dot_empty__pb2.Empty()
    with (
        stubs(server.state.grpc_inference) as inference,
        stubs(server.state.grpc_management) as management,
    ):
        oip, predictions = made.open_inference(inference), made.predictions(inference)
        for call, request in (
            (predictions.Ping, empty),
            (predictions.Predictions, asked(made)),
            (oip.ServerLive, made.open.ServerLiveRequest()),
            (oip.ModelReady, made.open.ModelReadyRequest(name="tiny")),
        ):
            found = {key: status(call, request, key) for key in (None, "management", "API", "inference")}
            assert found == {
                None: refused,
                "management": refused,
                "API": refused,
                "inference": grpc.StatusCode.OK,
            }
        listed = made.models(management).ListModels
        wanted = made.management.ListModelsRequest()
        assert status(listed, wanted, None) == status(listed, wanted, "inference") == refused
        assert status(listed, wanted, "management") is grpc.StatusCode.OK


def test_predictions(made: Stubs, channel: grpc.Channel, token: Any, score: float) -> None:
    answer = made.predictions(channel).Predictions(asked(made), metadata=token, timeout=SECONDS)
    assert json.loads(answer.prediction) == {"predictions": [score]}
    wrong = asked(made, b'{"instances": [{"item_id": 1500}]}')
    error = json.loads(
        made.predictions(channel).Predictions(wrong, metadata=token, timeout=SECONDS).prediction
    )
    assert (error["code"], error["path"]) == (400, "$.instances[0].item_id")


def test_description(server: RunningServer, made: Stubs, keys: dict[str, str]) -> None:
    with stubs(server.state.grpc_management) as channel:
        request = made.management.DescribeModelRequest(model_name="tiny", customized=True)
        answer = made.models(channel).DescribeModel(
            request, metadata=bearer(keys["management"]), timeout=SECONDS
        )
    assert json.loads(answer.msg)[0]["customizedMetadata"]["name"] == "tiny"


@pytest.mark.parametrize("fields", MALFORMED, ids=str)
def test_malformed_predictions(made: Stubs, channel: grpc.Channel, token: Any, fields: Any) -> None:
    request = made.inference.PredictionsRequest(model_name="tiny", input=fields)
    answer = made.predictions(channel).Predictions(request, metadata=token, timeout=SECONDS)
    assert "code" in json.loads(answer.prediction)
    (part,) = made.predictions(channel).StreamPredictions(request, metadata=token, timeout=SECONDS)
    assert part.prediction == answer.prediction


def test_a_stream_of_one_answer(made: Stubs, channel: grpc.Channel, token: Any, score: float) -> None:
    for _ in range(20):
        parts = made.predictions(channel).StreamPredictions(asked(made), metadata=token, timeout=SECONDS)
        assert [json.loads(part.prediction) for part in parts] == [{"predictions": [score]}]


def test_streams_beside_other_calls(
    made: Stubs, channel: grpc.Channel, client: httpx.Client, token: Any, score: float
) -> None:
    """Batches that mix HTTP and all calls of gRPC."""
    rpc = made.predictions(channel)

    def predicted(_: int) -> Any:
        return json.loads(rpc.Predictions(asked(made), metadata=token, timeout=SECONDS).prediction)

    def streamed(_: int) -> Any:
        (part,) = rpc.StreamPredictions(asked(made), metadata=token, timeout=SECONDS)
        return json.loads(part.prediction)

    def posted(_: int) -> Any:
        headers = {"Content-Type": "application/json"}
        return client.post("/predictions/tiny", content=BODY, headers=headers).json()

    def inferred(_: int) -> Any:
        answer = made.open_inference(channel).ModelInfer(tensors(made), metadata=token, timeout=SECONDS)
        return {"predictions": [round(each, 4) for each in answer.outputs[0].contents.fp32_contents]}

    def dropped(_: int) -> Any:
        return refused_stream(made, channel, token)

    calls = [predicted, streamed, posted, inferred, dropped] * 20
    with ThreadPoolExecutor(10) as pool:
        found = list(pool.map(lambda call: call(0), calls))
    for call, answer in zip(calls, found, strict=True):
        if call is dropped:
            assert answer in REFUSALS
        elif call is inferred:
            assert answer == {"predictions": [round(score, 4)]}
        else:
            assert answer == {"predictions": [score]}


def refused_stream(made: Stubs, channel: grpc.Channel, token: Any) -> grpc.StatusCode:
    """The status of a `StreamPredictions2` that closes its side at once; it has no answers."""
    requests = iter([asked(made, sequence_id="s")])
    call = made.predictions(channel).StreamPredictions2(requests, metadata=token, timeout=SECONDS)
    parts = []
    with contextlib.suppress(grpc.RpcError):
        parts = list(call)
    assert parts == []
    return call.code()


def test_streams_both_ways_that_close_at_once(made: Stubs, channel: grpc.Channel, token: Any) -> None:
    assert {refused_stream(made, channel, token) for _ in range(20)} <= set(REFUSALS)


def test_a_stream_both_ways_that_stays_open(made: Stubs, channel: grpc.Channel, token: Any) -> None:
    done = threading.Event()

    def requests() -> Iterator[Any]:
        yield asked(made, sequence_id="open")
        done.wait(SECONDS)

    call = made.predictions(channel).StreamPredictions2(requests(), metadata=token, timeout=SECONDS)
    with pytest.raises(grpc.RpcError):
        next(call)
    done.set()
    assert call.code() in REFUSALS


def test_calls_that_are_cancelled(made: Stubs, channel: grpc.Channel, token: Any) -> None:
    rpc = made.predictions(channel)
    for i in range(20):
        calls = [
            rpc.StreamPredictions(asked(made), metadata=token, timeout=SECONDS),
            rpc.StreamPredictions2(iter([asked(made, sequence_id=f"c{i}")]), metadata=token, timeout=SECONDS),
            rpc.Predictions.future(asked(made), metadata=token, timeout=SECONDS),
        ]
        for call in calls:
            call.cancel()


def tensors(made: Stubs, **changes: Any) -> Any:
    """A ModelInfer of ``ROW``; ``changes`` are of the whole request."""
    tensor = made.open.ModelInferRequest.InferInputTensor

    def contents(**values: Any) -> Any:
        return made.open.InferTensorContents(**values)

    inputs = [
        tensor(name="price", shape=[1], datatype="FP32", contents=contents(fp32_contents=[0.5])),
        tensor(name="user_id", shape=[1], datatype="BYTES", contents=contents(bytes_contents=[b"u17"])),
        tensor(name="item_id", shape=[1], datatype="INT64", contents=contents(int64_contents=[12])),
        tensor(name="item_tags", shape=[1, 2], datatype="UINT32", contents=contents(uint_contents=[3, 9])),
    ]
    return made.open.ModelInferRequest(**{"model_name": "tiny", "id": "a-7", "inputs": inputs, **changes})


def inferred_error(answer: Any) -> dict[str, Any]:
    (output,) = answer.outputs
    assert (output.name, output.datatype, list(output.shape)) == ("error", "BYTES", [1])
    return json.loads(output.contents.bytes_contents[0])


def test_model_infer(made: Stubs, channel: grpc.Channel, token: Any, score: float) -> None:
    call = made.open_inference(channel).ModelInfer
    answer = call(tensors(made), metadata=token, timeout=SECONDS)
    assert (answer.model_name, answer.model_version, answer.id) == ("tiny", "2.1", "a-7")
    (output,) = answer.outputs
    assert (output.name, output.datatype, list(output.shape)) == ("score", "FP32", [1])
    assert output.contents.fp32_contents[0] == pytest.approx(score, abs=1e-6)
    assert call(tensors(made, id=""), metadata=token, timeout=SECONDS).id == ""


def test_wrong_model_infers(made: Stubs, channel: grpc.Channel, token: Any) -> None:
    call = made.open_inference(channel).ModelInfer
    tensor, contents = made.open.ModelInferRequest.InferInputTensor, made.open.InferTensorContents

    def error(*inputs: Any, **changes: Any) -> tuple[int, str]:
        answer = call(tensors(made, inputs=inputs, **changes), metadata=token, timeout=SECONDS)
        assert answer.id == "a-7"
        found = inferred_error(answer)
        return found["code"], found["path"]

    def one(name: str, datatype: str, shape: list[int], **values: Any) -> Any:
        return tensor(name=name, datatype=datatype, shape=shape, contents=contents(**values))

    assert error() == (400, "$.inputs")
    assert error(one("item_id", "INT64", [1], int64_contents=[1500])) == (400, "$.inputs[0].data[0]")
    assert error(one("nosuch", "FP32", [1], fp32_contents=[1])) == (400, "$.inputs[0].name")
    assert error(one("price", "FP16", [1])) == (400, "$.inputs[0].data")
    assert error(one("price", "complex", [1])) == (400, "$.inputs[0].datatype")
    assert error(one("price", "FP32", [2**40], fp32_contents=[1])) == (400, "$.inputs[0].shape")
    assert error(one("price", "FP32", [], fp32_contents=[1])) == (400, "$.inputs[0].shape")
    assert error(one("user_id", "BYTES", [1], bytes_contents=[b"\xff"])) == (400, "$.inputs[0].data[0]")
    raw = {"raw_input_contents": [b"\x00\x00\x00\x3f"]}
    assert error(tensor(name="price", datatype="FP32", shape=[1]), **raw) == (400, "$.inputs[0].data")


def test_model_infers_that_torchserve_refuses(made: Stubs, channel: grpc.Channel, token: Any) -> None:
    call = made.open_inference(channel).ModelInfer
    price = made.open.ModelInferRequest.InferInputTensor(
        name="price",
        datatype="FP32",
        shape=[1],
        contents=made.open.InferTensorContents(fp32_contents=[float("nan")]),
    )
    for request in (
        tensors(made, model_name="nosuch"),
        tensors(made, model_name=""),
        tensors(made, inputs=[price]),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            call(request, metadata=token, timeout=SECONDS)
        assert caught.value.code() in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN)


def test_unsigned_numbers_of_the_upper_half(made: Stubs, channel: grpc.Channel, token: Any) -> None:
    call = made.open_inference(channel).ModelInfer
    tensor, contents = made.open.ModelInferRequest.InferInputTensor, made.open.InferTensorContents

    def infer(datatype: str, **values: Any) -> Any:
        one = tensor(name="user_id", datatype=datatype, shape=[1], contents=contents(**values))
        return call(tensors(made, inputs=[one]), metadata=token, timeout=SECONDS)

    wide = infer("INT64", int64_contents=[4_000_000_000]).outputs[0]
    assert infer("UINT32", uint_contents=[4_000_000_000]).outputs[0] == wide
    assert infer("UINT64", uint64_contents=[4_000_000_000]).outputs[0] == wide
    too_large = inferred_error(infer("UINT64", uint64_contents=[2**64 - 1]))
    assert "18446744073709551615" in too_large["message"]


def test_open_inference_states(made: Stubs, channel: grpc.Channel, token: Any) -> None:
    rpc, messages = made.open_inference(channel), made.open
    known = {"metadata": token, "timeout": SECONDS}
    assert rpc.ServerLive(messages.ServerLiveRequest(), **known).live
    assert rpc.ServerReady(messages.ServerReadyRequest(), **known).ready
    assert rpc.ModelReady(messages.ModelReadyRequest(name="tiny"), **known).ready
    metadata = rpc.ModelMetadata(messages.ModelMetadataRequest(name="tiny"), **known)
    assert (metadata.name, list(metadata.versions)) == ("tiny", ["2.1"])
    for call, request, code in (
        (rpc.ModelReady, messages.ModelReadyRequest(name="nosuch"), grpc.StatusCode.NOT_FOUND),
        (rpc.ModelMetadata, messages.ModelMetadataRequest(name="nosuch"), grpc.StatusCode.NOT_FOUND),
        (rpc.ServerMetadata, messages.ServerMetadataRequest(), grpc.StatusCode.UNIMPLEMENTED),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            call(request, **known)
        assert caught.value.code() is code


def test_a_model_that_does_not_answer_is_not_called_ready(server: RunningServer) -> None:
    """A stopped process stands in for a worker that TorchServe has lost: it is READY and answers nothing."""
    (pid,) = pids(server)
    with management_client(server.run_dir, server.state) as management:
        os.kill(pid, signal.SIGSTOP)
        try:
            with pytest.raises(
                ServingError, match='model "tiny" does not answer: TorchServe calls its workers'
            ):
                scale_model(management, "tiny", 1, marks=LogMarks.now(server.run_dir), timeout=2)
        finally:
            os.kill(pid, signal.SIGCONT)
        scale_model(management, "tiny", 1, marks=LogMarks.now(server.run_dir), timeout=60)


@pytest.mark.parametrize(
    "head",
    [
        b"POST /predictions/tiny HTTP/1.0\r\n\r\n",
        b"GET /invocations?model_name=tiny HTTP/1.0\r\n\r\n",
        b"GET /invocations?model_name=tiny HTTP/1.0\r\nts_request_sequence_id: x\r\n\r\n",
        b"POST /predictions/tiny HTTP/1.1\r\nts_stream_next: false\r\nts_request_sequence_id: x\r\n"
        b"Content-Length: 0\r\n\r\n",
    ],
)
def test_http_is_not_taken_for_grpc(server: RunningServer, keys: dict[str, str], head: bytes) -> None:
    host, _, port = server.state.inference.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=SECONDS) as connection:
        bearer_line = b"\r\nAuthorization: Bearer %b\r\n\r\n" % keys["inference"].encode()
        connection.sendall(head.replace(b"\r\n\r\n", bearer_line))
        assert connection.recv(100).startswith(b"HTTP/1.1 400")

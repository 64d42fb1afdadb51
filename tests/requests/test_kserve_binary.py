from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.handed import handle

from dlrm_factory.errors import RequestError
from dlrm_factory.requests.answers import Answer
from dlrm_factory.requests.formats.kserve.binary import cut_tensors, read_binary, split_body
from dlrm_factory.requests.service import DLRMService

# The hand-checkable scorer: logit = price + item_id / 100 + (sum of item_tags) / 10.
LENGTH = "Inference-Header-Content-Length"
V2_ROUTE = {"explain": "False"}  # TorchServe adds url_path on its own addresses
LOGIT = {"parameters": {"output": "logit"}}
TYPES = {"FP16": "<f2", "FP32": "<f4", "FP64": "<f8"} | {
    f"{sign}INT{8 * size}": f"<{'u' if sign else 'i'}{size}" for size in (1, 2, 4, 8) for sign in ("", "U")
}


def raw_texts(texts: list[bytes]) -> bytes:
    return b"".join(struct.pack("<I", len(text)) + text for text in texts)


def tensor(name: str, datatype: str, shape: list[int], data: bytes | None, **more: Any) -> tuple[Any, bytes]:
    """A tensor as tritonclient writes it, and its bytes."""
    size = {} if data is None else {"parameters": {"binary_data_size": len(data)}}
    return {"name": name, "datatype": datatype, "shape": shape, **size, **more}, data or b""


def of(name: str, datatype: str, values: Any) -> tuple[Any, bytes]:
    array = np.array(values, dtype=TYPES[datatype])
    return tensor(name, datatype, list(array.shape), array.tobytes())


def send(service: DLRMService, *tensors: tuple[Any, bytes], rest: bytes | None = None, **more: Any) -> Answer:
    head = json.dumps({"inputs": [sent for sent, _ in tensors], **more}).encode()
    rest = b"".join(data for _, data in tensors) if rest is None else rest
    headers = {LENGTH: str(len(head)), **V2_ROUTE}
    return handle(service, [{"body": bytearray(head + rest)}], [headers])[0]


def scores(answer: Answer) -> list[float]:
    assert answer.status == 200, answer.body
    return json.loads(answer.body)["outputs"][0]["data"]


@pytest.mark.parametrize("datatype", ["FP16", "FP32", "FP64", "INT8", "UINT16", "INT64", "UINT64"])
def test_dense_numbers(service: DLRMService, datatype: str) -> None:
    assert scores(send(service, of("price", datatype, [1, 2, 3]), **LOGIT)) == [1.0, 2.0, 3.0]
    assert scores(send(service, of("price", datatype, [[1], [2]]), **LOGIT)) == [1.0, 2.0]
    assert scores(send(service, of("price", datatype, np.zeros((0, 1))))) == []


def test_bfloat16(service: DLRMService) -> None:
    halves = np.array([1.5, -2.0], dtype="<f4").view("<u4") >> 16
    sent = tensor("price", "BF16", [2], halves.astype("<u2").tobytes())
    assert scores(send(service, sent, **LOGIT)) == [1.5, -2.0]


@pytest.mark.parametrize("datatype", sorted(name for name in TYPES if "INT" in name))
def test_bags(service: DLRMService, scorer: Any, datatype: str) -> None:
    assert scores(send(service, of("item_tags", datatype, [[3, 4], [5, 6]]), **LOGIT)) == [0.7, 1.1]
    ragged = [of("item_tags", datatype, [3, 4, 5]), of("item_tags.lengths", datatype, [2, 0, 1])]
    assert scores(send(service, *ragged, **LOGIT)) == [0.7, 0.0, 0.5]
    assert scorer.batches[-1].lengths.tolist()[2] == [2, 0, 1]
    assert scores(send(service, of("item_id", datatype, [20, 50]), **LOGIT)) == [0.2, 0.5]


def test_texts_and_mixtures(service: DLRMService, scorer: Any) -> None:
    texts = ["u17", "ü", "", "4"]
    raw = raw_texts([text.encode() for text in texts])
    answer = send(service, tensor("user_id", "BYTES", [4], raw), of("price", "FP32", [1, 2, 3, 4]), **LOGIT)
    assert scores(answer) == [1.0, 2.0, 3.0, 4.0]
    in_json = {"name": "user_id", "datatype": "BYTES", "shape": [4, 1], "data": texts}
    send(service, of("price", "FP32", [1, 2, 3, 4]), (in_json, b""))
    assert scorer.batches[-1].values.tolist() == scorer.batches[-2].values.tolist()


def test_a_json_tensor_between_binary_ones(service: DLRMService) -> None:
    between = {"name": "item_id", "datatype": "INT64", "shape": [2], "data": [20, 50]}
    sent = [of("price", "FP64", [1, 2]), (between, b""), of("item_tags", "INT32", [[1], [2]])]
    assert scores(send(service, *sent, **LOGIT)) == [1.3, 2.7]


def test_binary_equals_json_with_defaults_for_what_is_left_out(service: DLRMService, scorer: Any) -> None:
    send(service, of("item_id", "INT64", [7, 9]), of("item_tags", "INT16", [[1, 2, 3], [4, 5, 6]]))
    columns = {"item_id": [7, 9], "item_tags": [[1, 2, 3], [4, 5, 6]]}
    handle(service, [{"body": json.dumps({"inputs": columns}).encode()}])
    binary, plain = scorer.batches
    assert binary.dense.tolist() == plain.dense.tolist()
    assert binary.lengths.tolist() == plain.lengths.tolist()
    assert binary.values.tolist() == plain.values.tolist()


@pytest.mark.parametrize(
    "asked",
    [
        {"parameters": {"output": "logit", "binary_data_output": True}},
        {**LOGIT, "outputs": [{"name": "score", "parameters": {"binary_data": True}}]},
    ],
)
def test_binary_answers(service: DLRMService, asked: Any) -> None:
    answer = send(service, of("price", "FP32", [0.1, 2.5]), id="a-7", **asked)
    assert (answer.status, answer.content_type) == (200, "application/octet-stream")
    size = int(answer.headers[LENGTH])
    assert json.loads(answer.body[:size]) == {
        "model_name": "dlrm",
        "id": "a-7",
        "outputs": [
            {"name": "score", "shape": [2], "datatype": "FP32", "parameters": {"binary_data_size": 8}}
        ],
    }
    assert np.frombuffer(answer.body[size:], "<f4").tolist() == np.array([0.1, 2.5], "<f4").tolist()
    for_one = [{"name": "score", "parameters": {"binary_data": False}}]
    binary = {"parameters": {"output": "logit", "binary_data_output": True}}
    assert scores(send(service, of("price", "FP32", [0.1]), outputs=for_one, **binary)) == [0.1]


def test_explanations_are_json(service: DLRMService) -> None:
    body = {"inputs": [{"name": "price", "datatype": "FP32", "shape": [1], "data": [1]}]}
    body["parameters"] = {"binary_data_output": True}  # type: ignore[assignment]
    (answer,) = handle(service, [{"body": json.dumps(body).encode()}], [{"explain": "True"}])
    assert (answer.status, answer.headers) == (200, {})
    assert len(json.loads(answer.body)["explanations"]) == 1


IN = "$.inputs[0]"
SIZE = f"{IN}.parameters.binary_data_size"
PRICE = of("price", "FP32", [1, 2])


@pytest.mark.parametrize(
    ("sent", "path", "said"),
    [
        (tensor("price", "FP32", [2], b"1234567"), SIZE, "shape [2] of FP32 takes 8 bytes"),
        (tensor("price", "FP32", [2**31 - 1, 2**31 - 1], b"12345678"), SIZE, "takes 18446744056529682436 bytes"),
        (tensor("price", "BOOL", [2], b"\0\1"), f"{IN}.datatype", "send one of FP16"),
        (tensor("price", "BYTES", [1], raw_texts([b"1"])), f"{IN}.datatype", "datatype BYTES"),
        (tensor("item_id", "FP32", [1], b"1234"), f"{IN}.datatype", "datatype FP32"),
        (({**PRICE[0], "data": [1, 2]}, PRICE[1]), f"{IN}.data", "both there"),
        (of("price", "FP32", [1, np.nan]), f"{IN}.data[1]", "NaN is not a finite number"),
        (of("price", "FP64", [1e300]), f"{IN}.data[0]", "1e+300"),
        (of("item_id", "INT64", [5, 500]), f"{IN}.data[1]", "[0, 200)"),
        (of("item_id", "UINT64", [2**63]), f"{IN}.data[0]", "9223372036854775808"),
        (of("item_tags", "INT64", [[1, 2], [3, 50]]), f"{IN}.data[3]", "[0, 50)"),
        (tensor("user_id", "BYTES", [1], b"\x05\0\0\0abc"), f"{IN}.data[0]", "its length is 5, but 3 bytes"),
        (tensor("user_id", "BYTES", [2], raw_texts([b"a"]) + b"\1\0"), f"{IN}.data[1]", "2 bytes are left"),
        (tensor("user_id", "BYTES", [1], raw_texts([b"\xff"])), f"{IN}.data[0]", "not UTF-8"),
        (tensor("user_id", "BYTES", [2], raw_texts([b"a"])), f"{IN}.data", "holds 1 elements, but shape asks for 2"),
        (tensor("user_id", "BYTES", [1], raw_texts([b"a"] * 3)), f"{IN}.data", "more than 1 elements"),
        (tensor("user_id", "BYTES", [1], raw_texts([b""]) + b"\xff" * 4), f"{IN}.data", "more than 1"),
    ],
)  # fmt: skip
def test_mistakes_in_binary_tensors(service: DLRMService, sent: Any, path: str, said: str) -> None:
    answer = send(service, sent)
    error = json.loads(answer.body)
    assert (answer.status, error["path"]) == (400, path), error
    assert said in error["message"]
    assert error["error"] == error["message"]


def test_mistakes_in_binary_lengths(service: DLRMService) -> None:
    for counts, path, said in ([3, 0], "data", "add up to 3"), ([3, -1], "data[1]", "-1 is not the length"):
        sent = of("item_tags", "INT64", [1, 2]), of("item_tags.lengths", "INT32", counts)
        error = json.loads(send(service, *sent).body)
        assert error["path"] == f"$.inputs[1].{path}"
        assert said in error["message"]


@pytest.mark.parametrize("size", [-1, 1.0, True, "8", None, []])
def test_sizes_that_are_none(service: DLRMService, size: Any) -> None:
    sent, data = PRICE
    error = json.loads(send(service, ({**sent, "parameters": {"binary_data_size": size}}, data)).body)
    assert (error["code"], error["path"]) == (400, SIZE)


def test_bytes_that_do_not_add_up(service: DLRMService) -> None:
    for rest, path in (b"1234567", SIZE), (b"123456789", "$"):
        error = json.loads(send(service, PRICE, rest=rest).body)
        assert (error["code"], error["path"]) == (400, path)


@pytest.mark.parametrize("length", ["-1", "1e2", "99999", "x", "\u0663", "9" * 400, "0"])
def test_lengths_that_are_none(service: DLRMService, length: str) -> None:
    body = {"inputs": {"price": [1]}}
    (answer,) = handle(service, [{"body": json.dumps(body).encode()}], [{LENGTH.lower(): length}])
    assert (answer.status, json.loads(answer.body)["path"]) == (400, "$")


def test_the_header_counts_for_other_shapes_too(service: DLRMService) -> None:
    body = json.dumps({"inputs": {"price": [1]}}).encode()
    whole, longer = handle(
        service, [{"body": body}, {"body": body + b"1234"}], [{LENGTH: str(len(body)), **V2_ROUTE}] * 2
    )
    assert whole.status == 200
    assert (longer.status, json.loads(longer.body)["path"]) == (400, "$")


def test_limits(service: DLRMService) -> None:
    assert send(service, of("price", "FP32", [1] * 11)).status == 413
    assert send(service, of("price", "FP64", [1] * 600)).status == 413
    assert send(service, of("item_tags", "INT8", np.ones((11, 0)))).status == 413


def test_empty_tensors_of_kserve(service: DLRMService) -> None:
    """kserve's client sends null and no header for them."""
    sent = {
        "name": "price",
        "shape": [0],
        "datatype": "FP32",
        "parameters": {"binary_data_size": 0},
        "data": None,
    }
    body = json.dumps({"inputs": [sent]}).encode()
    assert scores(handle(service, [{"body": body}], [V2_ROUTE])[0]) == []


@pytest.mark.parametrize(
    ("headers", "named"),
    [
        (V2_ROUTE, True),
        ({"explain": "True"}, True),
        ({"explain": "False", "url_path": ""}, False),
        ({}, False),
    ],
)
def test_errors_under_error_where_kserves_clients_read_them(
    service: DLRMService, headers: Any, named: bool
) -> None:
    for body in b"{", b'{"inputs": [{"name": "prise", "shape": [1], "datatype": "FP32", "data": [1]}]}':
        (answer,) = handle(service, [{"body": body}], [headers])
        error = json.loads(answer.body)
        assert answer.status == 400
        assert error.get("error") == (error["message"] if named else None)


@given(
    datatype=st.sampled_from(sorted(TYPES)),
    shape=st.lists(st.integers(0, 5), min_size=1, max_size=2),
    offset=st.integers(0, 7),
    seed=st.integers(0, 2**32 - 1),
)
def test_numbers_are_read_where_they_lie(datatype: str, shape: list[int], offset: int, seed: int) -> None:
    raw = np.random.default_rng(seed).bytes(offset + np.prod(shape) * np.dtype(TYPES[datatype]).itemsize)
    values = read_binary(memoryview(raw)[offset:], datatype, shape, IN)
    assert isinstance(values, np.ndarray)
    assert values.tobytes() == raw[offset:]
    assert values.dtype == TYPES[datatype]
    assert not values.size or np.shares_memory(values, np.frombuffer(raw, np.uint8))


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]))))
def test_texts_come_back(texts: list[str]) -> None:
    raw = raw_texts([text.encode() for text in texts])
    assert read_binary(memoryview(raw), "BYTES", [len(texts)], IN) == texts


@given(st.binary(max_size=40), st.integers(0, 5))
def test_any_bytes_are_texts_or_a_mistake(raw: bytes, count: int) -> None:
    try:
        texts = read_binary(memoryview(raw), "BYTES", [count], IN)
    except RequestError as error:
        assert error.path.startswith(f"{IN}.data")  # noqa: PT017
    else:
        assert raw_texts([text.encode() for text in texts]) == raw
        assert len(texts) == count


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 2**70) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
PARAMETERS = st.none() | JSON | st.fixed_dictionaries({"binary_data_size": st.integers(-1, 20) | JSON})
TENSOR = st.fixed_dictionaries(
    {
        "name": st.sampled_from(["price", "user_id", "item_id", "item_tags", "item_tags.lengths"]) | JSON,
        "shape": st.lists(st.integers(0, 4), max_size=3) | JSON,
        "datatype": st.sampled_from([*TYPES, "BYTES", "BF16", "BOOL"]) | JSON,
    },
    optional={"parameters": PARAMETERS, "data": JSON},
)


@given(st.lists(TENSOR | JSON, max_size=3) | JSON, st.binary(max_size=40), st.integers(-2, 2))
def test_any_request_is_answered(inputs: Any, rest: bytes, shift: int) -> None:
    head = json.dumps({"inputs": inputs}).encode()
    try:
        sent, found = split_body(head + rest, str(len(head) + shift))
    except RequestError as error:
        assert error.path == "$"  # noqa: PT017
        return
    assert sent + bytes(found) == head + rest
    body = {"inputs": inputs}
    try:
        cut_tensors(body, memoryview(rest))
    except RequestError as error:
        assert error.path.startswith("$")  # noqa: PT017
    else:
        cut = [one["data"] for one in inputs if isinstance(one, dict) and isinstance(one.get("data"), memoryview)] \
            if isinstance(inputs, list) else []  # fmt: skip
        assert b"".join(map(bytes, cut)) == rest


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])  # the service keeps nothing
@given(
    inputs=st.lists(TENSOR, max_size=3), rest=st.binary(max_size=60), add=st.sampled_from([0, 0, 0, 1, -1])
)
def test_nothing_that_is_sent_is_our_fault(service: DLRMService, inputs: Any, rest: bytes, add: int) -> None:
    head = json.dumps({"inputs": inputs}).encode()
    raw = bytearray(head + rest)
    (answer,) = handle(service, [{"body": raw}], [{LENGTH: str(len(head) + add), **V2_ROUTE}])
    assert answer.status in (200, 400, 413)
    if answer.status != 200:
        assert json.loads(answer.body)["path"].startswith("$")

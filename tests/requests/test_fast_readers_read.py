"""Common bodies are read by the fast readers, and a fast reader that breaks is seen."""

from __future__ import annotations

import gc
import json
from typing import Any

import numpy as np
import pytest
from support.one_output import one_output

from dlrm_factory.config import tiny
from dlrm_factory.errors import RequestError
from dlrm_factory.features import FeatureEncoder
from dlrm_factory.requests.decoding import RequestDecoder
from dlrm_factory.requests.formats import RequestReader
from dlrm_factory.requests.formats.outputs import Asked, Scores
from dlrm_factory.requests.formats.shape import PlainForm
from dlrm_factory.requests.request import Request
from dlrm_factory.requests.service import DLRMService

pytest.importorskip("simdjson")

NUMBERS = {"price": 9.5, "age_days": 3, "user_id": 17, "item_id": 12, "item_tags": 4}
VALUES: dict[str, dict[str, Any]] = {
    "numbers": NUMBERS,
    "bags": {**NUMBERS, "item_tags": [3, 9], "user_id": []},
    "bags of one": {**NUMBERS, "item_tags": [3]},
    "nulls": {**NUMBERS, "price": None, "item_id": None},
    "nulls and bags": {**NUMBERS, "price": None, "item_id": None, "item_tags": [1, 2, 3]},
    "some features": {"price": 1.5, "item_id": 7},
    "strings": {**NUMBERS, "user_id": "u17"},
    "bags of strings": {**NUMBERS, "user_id": ["u17", "größe: ü"]},
}


def rows(values: dict[str, Any], samples: int) -> dict[str, Any]:
    return {"instances": [values] * samples}


def columns(values: dict[str, Any], samples: int) -> dict[str, Any]:
    return {"inputs": {name: [value] * samples for name, value in values.items()}}


def ranking(values: dict[str, Any], samples: int) -> dict[str, Any]:
    context = {name: values[name] for name in ("user_id", "age_days") if name in values}
    own = {name: value for name, value in values.items() if name not in context}
    return {"context": context, "candidates": [{"id": f"sku-{i}", **own} for i in range(samples)]}


def upstream(values: dict[str, Any], samples: int) -> dict[str, Any]:
    assert samples == 1
    bags = [values.get(name) for name in ("user_id", "item_id", "item_tags")]
    lists = [[] if bag is None else bag if isinstance(bag, list) else [bag] for bag in bags]
    return {
        "float_features": [values.get("price"), values.get("age_days")],
        "id_list_features.lengths": [len(bag) for bag in lists],
        "id_list_features.values": [id for bag in lists for id in bag],
    }


# simdjson's buffers hold no strings: the reference reads columns of them.
SLOW = {("columns", "strings", 5), ("columns", "bags of strings", 5)}
SHAPES = {"columns": columns, "rows": rows, "upstream": upstream, "ranking": ranking}
CASES = [
    (shape, kind, samples)
    for shape in SHAPES
    for kind in VALUES
    for samples in ((1,) if shape == "upstream" else (1, 5))
]


def decoder() -> RequestDecoder:
    return RequestDecoder(RequestReader(encoder=FeatureEncoder(tiny()), max_samples=100), 100_000)


def taken_by(case: tuple[str, str, int], body: dict[str, Any]) -> list[str]:
    """The readers that take a request of ``body``, asked as a server asks: together first, then alone."""
    shape, _, samples = case
    found = decoder()
    raw = json.dumps(body, ensure_ascii=False).encode()
    gathered = found.gather([Request(raw), Request(raw)])
    if not gathered:
        found.decode(Request(raw))
    taken = [name for name, count in found.counts.taken.items() if count]
    assert found.counts.failures == 0
    assert bool(taken) != bool(found.counts.reference)
    assert taken in ([], ["gathered"] if samples == 1 and shape != "ranking" else [shape])
    return taken


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
@pytest.mark.parametrize("output", [{}, {"output": "logit"}], ids=["", "logit"])
def test_common_bodies_are_read_fast(case: tuple[str, str, int], output: dict[str, str]) -> None:
    shape, kind, samples = case
    body = {**SHAPES[shape](VALUES[kind], samples), **output}
    assert bool(taken_by(case, body)) == (case not in SLOW)


@pytest.mark.parametrize("shape", ["columns", "rows", "ranking"])
@pytest.mark.parametrize("kind", sorted(VALUES))
def test_a_request_alone_is_read_fast_too(shape: str, kind: str) -> None:
    found = decoder()
    found.decode(Request(json.dumps(SHAPES[shape](VALUES[kind], 1)).encode()))
    slow = (shape, kind, 5) in SLOW
    assert (found.counts.taken[shape], found.counts.left[shape]) == (int(not slow), int(slow))
    assert found.counts.reference == int(slow)


class Zeros:
    declaration = tiny()

    @one_output
    def outputs(self, batch: Any, shared: Any = None) -> Any:
        return batch.dense[:, 0] * 0


@pytest.mark.parametrize("error", [AttributeError, TypeError, RuntimeError, ZeroDivisionError])
@pytest.mark.parametrize(
    ("name", "samples", "shape"),
    [("gathered", 1, rows), ("columns", 2, columns), ("rows", 2, rows), ("ranking", 2, ranking)],
)
def test_a_reader_that_breaks_costs_no_answer_and_is_seen(
    error: type[Exception],
    name: str,
    samples: int,
    shape: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(*_: Any) -> None:
        raise error("not as planned")

    service = DLRMService(Zeros())
    requests = [Request(json.dumps(shape(NUMBERS, samples)).encode())] * 3
    expected = service.handle(requests)
    before = service.read_counts.fast
    reader = {"gathered": "_gathering"}.get(name, f"_{name}")
    monkeypatch.setattr(getattr(service._decoder._fast, reader), "read", fail)
    assert service.handle(requests) == expected
    assert service.handle(requests) == expected
    counts = service.read_counts
    assert counts.failed[name] == counts.failures == 6
    # Together they failed; alone, the reader of rows takes each. A lone reader's requests go to the reference.
    assert (counts.fast - before, counts.reference) == ((6, 0) if name == "gathered" else (0, 6))
    (record,) = caplog.records
    assert f"The fast reader {name!r} failed, through a fault of ours" in record.getMessage()
    assert "not as planned" in caplog.text


def test_a_fault_within_a_reader_is_not_taken_for_a_mistake_of_the_client(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    found = decoder()
    raw = json.dumps(columns(NUMBERS, 2)).encode()

    def fail(*_: Any) -> None:
        raise AttributeError("no such thing")

    with monkeypatch.context() as patch:
        patch.setattr(found._fast._columns._encoder, "encode_single_valued", fail)
        assert len(found.decode(Request(raw)).batch) == 2
    assert (found.counts.failed["columns"], found.counts.reference) == (1, 1)
    # The log keeps the traceback, with the parser's document in it; the next body is read fast all the same.
    assert caplog.records[0].exc_info is not None
    found.decode(Request(raw))
    assert (found.counts.taken["columns"], found.counts.failures) == (1, 1)


def test_a_body_that_is_left_does_not_keep_the_parser_from_the_next() -> None:
    wrong = [
        columns({**NUMBERS, "item_id": 1500}, 2),
        columns({"item_tags": [1, 1500]}, 2),
        columns({"price": 1e39}, 2),
        columns({"item_id": True}, 2),
    ]
    found = decoder()
    good = json.dumps(columns(NUMBERS, 2)).encode()
    gc.disable()  # errors may lie in cycles
    try:
        for body in wrong:
            with pytest.raises(RequestError):
                found.decode(Request(json.dumps(body).encode()))
            found.decode(Request(good))
    finally:
        gc.enable()
    assert (found.counts.taken["columns"], found.counts.failures) == (len(wrong), 0)


@pytest.mark.parametrize(
    "raw",
    [
        b'{"inputs": [1]}',
        b'{"inputs": 1}',
        b'[{"inputs": 1}]',
        b'"inputs"',
        b'{"inputs": {"price": {"a": 1}}}',
        b'{"inputs": {"price": [{}], "item_tags": [[{}], 1]}}',
        b'{"inputs": {"item_tags": [[1], {}]}}',
        b'{"inputs": {"item_tags": [[1], "x"]}}',
        b'{"inputs": {"item_tags": []}, "output": "["}',
        b'{"inputs": {"item_tags": [[[1]], 2]}}',
        b'{"inputs": {"price": [9999999999999999999999999]}}',
        b'{"inputs": {"item_id": [18446744073709551615]}}',
        b'{"inputs": {"price": [1e999]}}',
        b'{"inputs": {"price": [1]}, "output": {}}',
        b'{"inputs": {"item_tags": ' + b"[" * 1200 + b"]" * 1200 + b"}}",
        b'{"inputs"',
        b' "inputs" \xff',
    ],
)
def test_no_body_is_a_fault_of_a_reader(raw: bytes, caplog: pytest.LogCaptureFixture) -> None:
    service = DLRMService(Zeros())
    (answer, *_) = service.handle([Request(raw), Request(raw.replace(b"null", b"0"))])
    assert answer.status in (200, 400)
    assert service.read_counts.failures == 0
    assert caplog.records == []


def test_the_frame_of_a_plain_answer_is_its_json() -> None:
    for form in PlainForm:
        scores = Scores({"score": [0.5]}, {"score": np.zeros(1, dtype=np.float32)}, {})
        content = form.content(scores, Asked("probability", ("score",)))
        assert form.before + b"0.5" + form.after == json.dumps(content).replace(" ", "").encode()

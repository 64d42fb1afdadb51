"""Batches read and answered in one piece are those of TorchServe's own code, byte for byte."""

from __future__ import annotations

import contextlib
import logging
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.depth import examples
from support.worker_wire import FakeSocket, fresh_module, inference, request

from handler.request import REQUEST_ID
from handler.wire import KNOWN_VERSION, install_reads, install_whole_messages, observers_of

PROTOCOL, SERVICE = "ts.protocol.otf_message_handler", "ts.service"
CONTEXT = fresh_module("ts.context")


def installed() -> tuple[ModuleType, ModuleType]:
    """TorchServe's protocol and service, loaded anew, with everything in place."""
    protocol, service = fresh_module(PROTOCOL), fresh_module(SERVICE)
    assert install_reads(protocol, KNOWN_VERSION)
    assert install_whole_messages(protocol, service, CONTEXT, KNOWN_VERSION)
    return protocol, service


PLAIN, PLAIN_SERVICE = fresh_module(PROTOCOL), fresh_module(SERVICE)
WHOLE, WHOLE_SERVICE = installed()

HEADERS = st.sampled_from(
    [
        {},
        {b"Host": b"a", b"explain": b"False"},
        {b"Host": b"a", b"explain": b"True"},
        {b"Host": b"a", b"content-length": b"99"},
        {b"Host": b"a", b"content-length": b"100"},
        {b"body": b"a header of the parameter's name"},
        {b"X": b"y" * 5000},
    ]
) | st.dictionaries(st.text(max_size=5).map(str.encode), st.text(max_size=9).map(str.encode), max_size=3)
PARAMETERS = st.lists(
    st.tuples(
        st.sampled_from([b"body", b"data", "größe".encode()]),
        st.sampled_from([b"", b"application/json", b"text/plain", b"application/octet-stream"]),
        st.sampled_from([b"", b"{}", b'{"a": [1, 2]}', b"not JSON", b"\xff\xfe"]) | st.binary(max_size=400),
    ),
    max_size=3,
)
BATCHES = st.lists(
    st.builds(request, parameters=PARAMETERS, headers=HEADERS, request_id=st.binary(min_size=1, max_size=36)),
    max_size=6,
)
PIECES = st.lists(st.integers(1, 700), min_size=1, max_size=6) | st.just([1 << 30])


def read(module: ModuleType, sent: bytes, pieces: list[int]) -> list[str]:
    """All batches in ``sent``, as text that tells the types too."""
    conn, batches = FakeSocket(sent, pieces), []
    with contextlib.suppress(SystemExit):  # the connection has closed
        while True:
            batches.append(repr(module.retrieve_msg(conn)))
    return batches


@pytest.mark.parametrize("decodes", [None, "true", "false"])
@settings(max_examples=examples(120))
@given(batches=st.lists(BATCHES, min_size=1, max_size=4), pieces=PIECES)
def test_batches_are_read_as_torchserve_reads_them(
    decodes: str | None, batches: list[list[bytes]], pieces: list[int]
) -> None:
    sent = b"".join(inference(*batch) for batch in batches)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("TS_DECODE_INPUT_REQUEST", raising=False)
        if decodes is not None:
            patch.setenv("TS_DECODE_INPUT_REQUEST", decodes)
        patch.setattr(logging.root, "disabled", True)  # each tells what it cannot decode
        plain = read(PLAIN, sent, [1 << 30])
        assert len(plain) == len(batches)
        assert read(WHOLE, sent, pieces) == plain


ASCII = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=30)
NAMED = st.builds(request, parameters=PARAMETERS, headers=HEADERS, request_id=ASCII.map(str.encode))


@settings(max_examples=examples(150))
@given(
    batch=st.lists(
        st.builds(request, parameters=PARAMETERS, headers=HEADERS, request_id=ASCII.map(str.encode)),
        max_size=6,
    )
)
def test_requests_are_unpacked_as_torchserve_does(batch: list[bytes]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TS_DECODE_INPUT_REQUEST", "false")
        sent = inference(*batch)
        found = WHOLE_SERVICE.Service.retrieve_data_for_inference(
            WHOLE.retrieve_msg(FakeSocket(sent, [1 << 30]))[1]
        )
        plain = PLAIN_SERVICE.Service.retrieve_data_for_inference(
            PLAIN.retrieve_msg(FakeSocket(sent, [1 << 30]))[1]
        )
    assert [each.get_request_properties() for each in found[0]] == [
        each.get_request_properties() for each in plain[0]
    ]
    assert found[1:] == plain[1:]


def test_a_batch_of_none_is_refused_as_before() -> None:
    for service in (PLAIN_SERVICE, WHOLE_SERVICE):
        with pytest.raises(ValueError, match="Received invalid inputs"):
            service.Service.retrieve_data_for_inference(None)


def answered(size: int) -> Any:
    """TorchServe's context of a batch of ``size``."""
    context = CONTEXT.Context("dlrm", ".", {}, 64, None, "0.12.0")
    context.request_processor = [CONTEXT.RequestProcessor({}) for _ in range(size)]
    return context


BODIES = st.binary(max_size=60) | st.builds(bytearray, st.binary(max_size=9)) | ASCII | st.just({"a": [1]})
STREAM = st.sampled_from(["true", "false"]).map(lambda value: {"ts_stream_next": value})
ANSWERS = st.lists(
    st.tuples(
        st.just(b'{"predictions":[0.5]}') | BODIES,
        st.none() | st.tuples(st.sampled_from([200, 400, 413, 500]), ASCII),
        st.sampled_from([None, "", "application/json", "text/plain; charset=utf-8"]),
        st.dictionaries(st.just(REQUEST_ID) | ASCII, ASCII, max_size=2) | STREAM,
        STREAM | st.just({}),
    ),
    max_size=5,
)


@settings(max_examples=examples(300))
@given(answers=ANSWERS, streams=st.sampled_from([False, False, True]))
def test_answers_are_written_as_torchserve_writes_them(answers: list[Any], streams: bool) -> None:
    written = []
    for service in (PLAIN_SERVICE, WHOLE_SERVICE):
        context = answered(len(answers))
        for index, (_, status, content_type, headers, before) in enumerate(answers):
            for name, value in before.items():
                context.set_response_header(index, name, value)
            if status is not None:
                context.set_response_status(*status, index)
            if content_type is not None:
                context.set_response_content_type(index, content_type)
            for name, value in headers.items():
                context.set_response_header(index, name, value)
        ids = {index: f"id-{index}" for index in range(len(answers))}
        bodies = [body for body, *_ in answers]
        message = service.create_predict_response(bodies, ids, "Prediction success", 200, context, streams)
        written.append(bytes(message))
    assert written[0] == written[1]


def test_answers_with_the_ids_of_their_requests_are_written_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    written = []
    for service in (PLAIN_SERVICE, WHOLE_SERVICE):
        context = answered(2)
        for index in range(2):
            context.set_response_content_type(index, "application/json")
            context.set_response_header(index, REQUEST_ID, f"id-{index}")
        if service is WHOLE_SERVICE:
            # TorchServe's own writer would look each header up by itself.
            monkeypatch.setattr(context, "get_response_content_type", lambda index: pytest.fail("slow"))
        written.append(
            bytes(service.create_predict_response([b"{}"] * 2, {0: "a", 1: "b"}, "", 200, context))
        )
    assert written[0] == written[1]
    assert written[0].count(REQUEST_ID.encode()) == 2


def test_whoever_wants_to_know_is_told_when_answers_leave() -> None:
    protocol, service = installed()
    told: list[str] = []
    observers = observers_of(protocol)
    assert observers is not None
    observers.writes.append(lambda: told.append("answers"))
    context = answered(1)
    context.set_response_content_type(0, "application/json")
    service.create_predict_response([b"{}"], {0: "a"}, "", 200, context)
    service.create_predict_response(None, {0: "a"}, "Prediction failed", 503)
    assert told == ["answers"] * 2


def test_headers_with_the_id_of_a_request_are_not_kept() -> None:
    protocol, _ = installed()
    reads = protocol._retrieve_inference_msg.__self__
    for name in (b"x-dlrm-request-id", b"X-Dlrm-Request-Id"):
        protocol.retrieve_msg(FakeSocket(inference(request(b"{}", headers={name: b"7f"})), [1 << 30]))
    assert len(reads._known) == 0


@pytest.mark.parametrize("context", [None, answered(1)])
def test_a_failed_batch_is_told_as_torchserve_tells_it(context: Any) -> None:
    arguments = (None, {0: "id"}, "Prediction failed", 503, context)
    plain, whole = (s.create_predict_response(*arguments) for s in (PLAIN_SERVICE, WHOLE_SERVICE))
    assert plain == whole


def test_other_ranks_answer_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert WHOLE_SERVICE.create_predict_response([b"x"], {0: "id"}, "", 200, answered(1)) is None


def test_headers_that_come_again_are_read_once() -> None:
    protocol, service = installed()
    headers = {b"Host": b"a", b"content-length": b"2"}
    batch = protocol.retrieve_msg(FakeSocket(inference(*[request(b"{}", headers=headers)] * 3), [1 << 30]))[1]
    assert batch[0]["headers"] is batch[1]["headers"] is batch[2]["headers"]
    processors, *_ = service.Service.retrieve_data_for_inference(batch)
    assert processors[0] is not processors[1]
    assert processors[0].get_request_properties() is processors[1].get_request_properties()


def test_headers_that_never_come_again_do_not_pile_up() -> None:
    protocol, _ = installed()
    reads = protocol._retrieve_inference_msg.__self__
    for i in range(3000):
        protocol.retrieve_msg(
            FakeSocket(inference(request(b"{}", headers={b"traceparent": b"%d" % i})), [1 << 30])
        )
    assert len(reads._known) <= 512
    assert len(reads._lengths) <= 4


def test_without_buffered_reads_nothing_is_replaced() -> None:
    protocol, service = fresh_module(PROTOCOL), fresh_module(SERVICE)
    before = dict(vars(protocol)), dict(vars(service))
    assert not install_whole_messages(protocol, service, CONTEXT, KNOWN_VERSION)
    assert (dict(vars(protocol)), dict(vars(service))) == before


def test_another_source_keeps_its_code(caplog: pytest.LogCaptureFixture) -> None:
    protocol, service = fresh_module(PROTOCOL), fresh_module(SERVICE)
    assert install_reads(protocol, KNOWN_VERSION)
    reads = protocol._retrieve_inference_msg
    strange: Any = SimpleNamespace(__name__="ts.context")
    assert not install_whole_messages(protocol, service, strange, KNOWN_VERSION)
    assert protocol._retrieve_inference_msg is reads
    assert (
        "Headers are read and answers written one by one, which is slower: ts.context has no source"
        in caplog.text
    )


def test_installing_twice_keeps_what_is_known() -> None:
    protocol, service = installed()
    reads, answers = protocol._retrieve_inference_msg, service.create_predict_response
    assert install_whole_messages(protocol, service, CONTEXT, KNOWN_VERSION)
    assert protocol._retrieve_inference_msg is reads
    assert service.create_predict_response is answers

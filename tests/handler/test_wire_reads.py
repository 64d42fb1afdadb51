"""Buffered reads give the same messages as TorchServe's own, whatever the pieces they come in."""

from __future__ import annotations

import importlib.util
import logging
import socket
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.depth import examples
from support.worker_wire import FakeSocket, fresh_module, inference, load, request

from handler.wire import CHUNK_BYTES, KNOWN_VERSION, ReadBuffers, observers_of
from handler.wire import install_reads as install


def protocol() -> ModuleType:
    return fresh_module("ts.protocol.otf_message_handler")


PLAIN, BUFFERED = protocol(), protocol()
assert install(BUFFERED, KNOWN_VERSION)


def messages_of(module: ModuleType, conn: Any) -> list[Any]:
    """All messages until the connection closes, each with the types of what is in it."""
    messages: list[Any] = []
    with pytest.raises(SystemExit) as left:
        _read_all(module, conn, messages)
    assert left.value.code == 0
    return [(message, repr(message)) for message in messages]


def _read_all(module: ModuleType, conn: Any, messages: list[Any]) -> None:
    while True:
        messages.append(module.retrieve_msg(conn))


REQUESTS = st.builds(
    request,
    st.binary(max_size=300),
    request_id=st.binary(min_size=1, max_size=40),
    headers=st.dictionaries(st.binary(max_size=12), st.binary(max_size=40), max_size=4),
    content=st.sampled_from([b"", b"application/octet-stream"]),
)
MESSAGES = st.builds(load, st.binary(max_size=20)) | st.lists(REQUESTS, max_size=6).map(
    lambda r: inference(*r)
)
SIZES = st.lists(st.integers(1, 700), min_size=1, max_size=8)


@settings(max_examples=examples(150))
@given(sent=st.lists(MESSAGES, max_size=5).map(b"".join), sizes=SIZES)
def test_any_pieces_give_the_messages_of_plain_reads(sent: bytes, sizes: list[int]) -> None:
    plain = messages_of(PLAIN, FakeSocket(sent, [1 << 30]))
    assert messages_of(BUFFERED, FakeSocket(sent, sizes)) == plain


@settings(max_examples=examples(60))
@given(sent=MESSAGES, sizes=SIZES, cut=st.floats(0, 1))
def test_a_connection_cut_anywhere_ends_the_worker(sent: bytes, sizes: list[int], cut: float) -> None:
    part = sent[: int(cut * len(sent))]
    assert messages_of(BUFFERED, FakeSocket(part, sizes)) == messages_of(PLAIN, FakeSocket(part, [1 << 30]))


@pytest.mark.parametrize("size", [CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 5_000_000])
@pytest.mark.parametrize("sizes", [[1 << 30], [CHUNK_BYTES // 3, 1, 200_000], [7, CHUNK_BYTES]])
def test_bodies_about_and_over_the_buffer(size: int, sizes: list[int]) -> None:
    body = bytes(i % 251 for i in range(1000)) * (size // 1000) + b"x" * (size % 1000)
    sent = inference(request(b"first"), request(body), request(b"last")) + inference(request(b"next"))
    (first, _), (second, _) = messages_of(BUFFERED, FakeSocket(sent, sizes))
    assert [item["parameters"][0]["value"] for item in first[1]] == [b"first", body, b"last"]
    assert [item["parameters"][0]["value"] for item in second[1]] == [b"next"]


def test_a_batch_of_small_requests_is_one_call() -> None:
    sent = inference(*[request(b"{}" * 100, headers={b"Host": b"x"}) for _ in range(64)])
    plain, buffered = FakeSocket(sent, [1 << 30]), FakeSocket(sent, [1 << 30])
    assert PLAIN.retrieve_msg(plain) == BUFFERED.retrieve_msg(buffered)
    assert buffered.calls == 1
    assert plain.calls > 700


def test_what_is_ahead_belongs_to_its_connection() -> None:
    one = FakeSocket(inference(request(b"a1")) + inference(request(b"a2")), [1 << 30])
    other = FakeSocket(inference(request(b"b1")) + inference(request(b"b2")), [1 << 30])
    bodies = [
        BUFFERED.retrieve_msg(conn)[1][0]["parameters"][0]["value"]
        for conn in (one, other, one, other, one)[:4]
    ]
    assert bodies == [b"a1", b"b1", b"a2", b"b2"]


def test_a_read_waits_for_no_more_than_it_needs() -> None:
    here, there = socket.socketpair()
    with here, there:
        there.sendall(inference(request(b"{}")))
        here.settimeout(10)
        assert BUFFERED.retrieve_msg(here) == (b"I", BUFFERED.retrieve_msg(_sent(request(b"{}")))[1])


def _sent(*requests: bytes) -> FakeSocket:
    return FakeSocket(inference(*requests), [1 << 30])


def test_five_megabytes_through_a_real_socket() -> None:
    here, there = socket.socketpair()
    body = b"0123456789" * 500_000
    with here, there:
        sender = threading.Thread(target=there.sendall, args=(inference(request(body), request(b"{}")),))
        sender.start()
        _, batch = BUFFERED.retrieve_msg(here)
        sender.join()
    assert [item["parameters"][0]["value"] for item in batch] == [body, b"{}"]


def test_an_error_of_the_socket_is_not_swallowed() -> None:
    class Broken:
        def recv_into(self, buffer: Any) -> int:
            raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        ReadBuffers().read_int(Broken())  # type: ignore[arg-type]


@pytest.mark.parametrize("length", [0, -1, -7])
def test_nothing_is_read_for_an_empty_field(length: int) -> None:
    buffers, conn = ReadBuffers(), FakeSocket(b"abcdef", [1 << 30])
    assert buffers.read(conn, length) == b""  # type: ignore[arg-type]
    assert conn.calls == 0
    assert buffers.read(conn, 2) == b"ab"  # type: ignore[arg-type]
    assert buffers.read(conn, length) == b""  # type: ignore[arg-type]
    assert buffers.read(conn, 4) == b"cdef"  # type: ignore[arg-type]


def test_another_version_keeps_its_reads(caplog: pytest.LogCaptureFixture) -> None:
    module = protocol()
    before = dict(vars(module))
    assert not install(module, "0.13.0")
    assert vars(module) == before
    (record,) = caplog.records
    assert record.getMessage() == (
        "Requests are read field by field, which is slower: TorchServe is 0.13.0, and buffered reads are made "
        "for 0.12.0"
    )


def test_a_changed_source_keeps_its_reads(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = Path(str(PLAIN.__file__)).read_text()
    changed = tmp_path / "changed.py"
    changed.write_text(text.replace("data += pkt", "data += bytes(pkt)"))
    spec = importlib.util.spec_from_file_location("changed", changed)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    reads = module._retrieve_buffer
    assert not install(module, KNOWN_VERSION)
    assert module._retrieve_buffer is reads
    assert "changed is not as TorchServe 0.12.0 has it" in caplog.text


def test_a_module_without_source_keeps_its_reads() -> None:
    module = ModuleType("compiled_protocol")
    assert not install(module, KNOWN_VERSION)
    assert not hasattr(module, "_retrieve_buffer")


def test_installing_twice_keeps_what_is_ahead(caplog: pytest.LogCaptureFixture) -> None:
    module = protocol()
    with caplog.at_level(logging.INFO, logger="handler.wire.install"):
        assert install(module, KNOWN_VERSION)
        reads = module._retrieve_buffer
        assert install(module, KNOWN_VERSION)
    assert module._retrieve_buffer is reads
    assert [record.getMessage() for record in caplog.records] == ["Requests are read 256 KiB at a time"]


def test_whoever_wants_to_know_is_told_before_each_wait() -> None:
    module = protocol()
    told: list[object] = []
    assert observers_of(module) is None
    assert install(module, KNOWN_VERSION)
    buffers = module._retrieve_buffer.__self__
    # Not without whole messages, which tell of writes.
    assert observers_of(module) is None
    buffers.observers.waits.append(told.append)
    buffers.observers.reads.append(lambda: told.append("bytes"))
    here, there = socket.socketpair()
    with here, there:
        there.sendall(inference(request(b"{}")) * 2)
        module.retrieve_msg(here)
        module.retrieve_msg(here)
    # The second message came with the first.
    assert told == [here, "bytes"]

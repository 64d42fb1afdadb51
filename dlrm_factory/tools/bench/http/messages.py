"""Messages between the caller and its generator processes: msgpack, a four-byte length before each message."""

from __future__ import annotations

from typing import IO, TypeAlias

import msgspec

__all__ = [
    "Job",
    "Measured",
    "Message",
    "Progress",
    "WindowBegan",
    "WindowEnded",
    "read_message",
    "write_message",
]

_LENGTH_BYTES = 4


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """Work of one generator process.

    Fields:
        url: scheme, host and port.
        requests: whole HTTP requests, sent in turn, head and body.
        samples: samples in each of them.
        connections: that are kept open.
        rate: requests a second, at random moments (Poisson); None sends the next one when an answer is there.
        warmup_s: seconds that are not measured, before the window.
        duration_s: seconds of the window.
        timeout_s: seconds until a request counts as unanswered.
        seed: of the random moments.
    """

    url: str
    requests: list[bytes]
    samples: list[int]
    connections: int
    rate: float | None
    warmup_s: float
    duration_s: float
    timeout_s: float
    seed: int


class Progress(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """State so far: seconds since the start of the warm-up, answers, and requests that failed."""

    elapsed_s: float
    answered: int
    failed: int


class WindowBegan(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The warm-up is over."""


class WindowEnded(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """No request of the window is sent any more; some may be unanswered."""


class Measured(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Outcome of the requests whose moment of sending lay in the window.

    Fields:
        latencies: float64, native bytes: seconds from the moment a request was to be sent to its whole answer, of
            those with status 200.
        late: float64, native bytes: seconds from that moment to the real sending while a connection was free, at a
            rate only.
        statuses: answers by HTTP status.
        failures: requests without an answer, by what happened.
        answered_in_window, samples_in_window: status 200, by the moment of the answer.
        window_s: its real length.
        cpu_s: of the generator in the window.
    """

    latencies: bytes
    late: bytes
    statuses: dict[int, int]
    failures: dict[str, int]
    answered_in_window: int
    samples_in_window: int
    window_s: float
    cpu_s: float


Message: TypeAlias = Progress | WindowBegan | WindowEnded | Measured

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)


def write_message(stream: IO[bytes], message: msgspec.Struct) -> None:
    """One message, flushed."""
    content = _encoder.encode(message)
    stream.write(len(content).to_bytes(_LENGTH_BYTES, "big") + content)
    stream.flush()


def read_message(stream: IO[bytes]) -> Message | None:
    """The next message; None at the stream's end. ``stream`` need not be buffered."""
    length = _read(stream, _LENGTH_BYTES)
    content = _read(stream, int.from_bytes(length, "big")) if length else None
    return _decoder.decode(content) if content else None


def _read(stream: IO[bytes], size: int) -> bytes | None:
    """``size`` bytes, however many pieces they come in; None if the stream ends before."""
    pieces = []
    while size > 0:
        piece = stream.read(size)
        if not piece:
            return None
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)

"""Reports of a worker to `dlrm rollout`: counts, times, and a sample of requests with their answers.

A report is a file in memory, without a name, whose descriptor goes by a Unix socket.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import msgspec

__all__ = ["Sampled", "TapReport", "read_report", "tap_path", "write_report"]

_NAME = ".dlrm.tap"
_MAX_REPORT_BYTES = 16 << 20


class Sampled(msgspec.Struct, frozen=True, kw_only=True):
    """One request: its body, empty unless bodies are asked for, and the body of its answer."""

    answer: bytes
    body: bytes


class TapReport(msgspec.Struct, frozen=True, kw_only=True):
    """Report of one worker.

    Fields:
        pid: of the worker.
        answered, refused, failed: answers of 2xx or 3xx, 4xx and 5xx since the last report.
        seconds: requests of each batch since the last report, and the seconds that the worker had it.
        sampled: some requests of the latest batch.
    """

    pid: int
    answered: int
    refused: int
    failed: int
    seconds: list[tuple[int, float]]
    sampled: list[Sampled]


def tap_path(temporary: Path | None = None) -> Path:
    """Socket of whoever asks workers of the server with this temporary folder, or of this process's own."""
    return (temporary or Path(tempfile.gettempdir())) / _NAME


def write_report(report: TapReport) -> int:
    """Descriptor of a new file in memory with ``report``, for the caller to close."""
    descriptor = os.memfd_create("report", os.MFD_CLOEXEC)
    with open(descriptor, "wb", closefd=False) as file:
        file.write(msgspec.msgpack.encode(report))
    return descriptor


def read_report(descriptor: int) -> TapReport | None:
    """The report in a file in memory; None if it holds none."""
    size = os.fstat(descriptor).st_size
    try:
        return msgspec.msgpack.decode(os.pread(descriptor, min(size, _MAX_REPORT_BYTES), 0), type=TapReport)
    except msgspec.DecodeError:
        return None

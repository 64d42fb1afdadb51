"""Measurements over HTTP by key: which target gets which load, and the number that is kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["FOLLOWING", "HTTP", "SCORER_BATCHES", "HTTPMeasurement", "needed_keys", "targets_of"]

SCORER_BATCHES = (1, 16, 128, 512, 2048)


@dataclass(frozen=True, kw_only=True)
class HTTPMeasurement:
    """A closed loop.

    Fields:
        samples: of each request.
        plain: TorchServe's own format of one sample, for a handler that takes no other.
        number: of the outcome: requests/s, samples/s or the median latency in ms.
    """

    key: str
    target: str
    samples: int = 1
    plain: bool = False
    connections: int
    number: Literal["rate", "sample_rate", "p50"]


def _many(key: str, target: str, *, plain: bool = False) -> HTTPMeasurement:
    return HTTPMeasurement(key=key, target=target, plain=plain, connections=64, number="rate")


def _lone(key: str, target: str) -> HTTPMeasurement:
    return HTTPMeasurement(key=key, target=target, connections=1, number="p50")


def _candidates(key: str, target: str, samples: int, connections: int = 1) -> HTTPMeasurement:
    return HTTPMeasurement(
        key=key, target=target, samples=samples, connections=connections, number="sample_rate"
    )


# In the order of a round: what is compared stands side by side.
HTTP = (
    _many("stock 1", "stock", plain=True),
    _many("1", "dlrm"),
    _many("fastapi 1", "fastapi_batcher"),
    _many("echo 1", "echo"),
    _many("plain echo 1", "plain_echo"),
    _many("default 1", "stock_default", plain=True),
    _lone("lone", "dlrm"),
    _lone("fastapi lone", "fastapi_threads"),
    _lone("echo lone", "echo"),
    _lone("plain echo lone", "plain_echo"),
    _lone("latency lone", "dlrm_latency"),
    _lone("echo latency lone", "echo_latency"),
    _lone("plain echo latency lone", "plain_echo_latency"),
    _candidates("128 lone", "dlrm", 128),
    _candidates("fastapi 128 lone", "fastapi_threads", 128),
    _candidates("512 lone", "dlrm", 512),
    _candidates("fastapi 512 lone", "fastapi_threads", 512),
    _candidates("512", "dlrm", 512, connections=8),
)

# Measurements that follow from others: each needs the number of the second key first, and the target dlrm.
FOLLOWING = {
    "512 on 2": "512",
    "70 % p50": "1",
    "70 % p99": "1",
    "512 70 % p50": "512",
    "512 70 % p99": "512",
}


def needed_keys(keys: set[str]) -> set[str]:
    """``keys`` and those that they follow from."""
    return keys | {FOLLOWING[key] for key in keys if key in FOLLOWING}


def targets_of(keys: set[str]) -> set[str]:
    """Targets that the measurements of ``keys`` load."""
    return {each.target for each in HTTP if each.key in needed_keys(keys)}

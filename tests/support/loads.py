"""Loads for servers that only a test knows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from dlrm_factory.tools.bench.http.bodies import Body, http_requests
from dlrm_factory.tools.bench.http.driving import Load


class Served(Protocol):
    url: str


def load_of(server: Served, *, bodies: Sequence[bytes] = (b"{}",), **options: Any) -> Load:
    """``bodies`` of three samples each, with hardly any warm-up."""
    made = [Body(content=content, samples=3) for content in bodies]
    return Load(
        url=server.url,
        requests=http_requests(made, url=server.url, model="dlrm"),
        samples=[body.samples for body in made],
        **{"warmup_s": 0.1, "duration_s": 0.5, **options},
    )

"""Requests as TorchServe hands them over, through the handler's reading of them, to a service."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dlrm_factory.requests.answers import Answer
from dlrm_factory.requests.service import DLRMService
from handler.request import read_request

__all__ = ["handle"]


def handle(
    service: DLRMService,
    sent: Sequence[Mapping[str, Any]],
    headers: Sequence[Mapping[str, Any]] | None = None,
) -> list[Answer]:
    """Answers to ``sent``, elements of TorchServe's batch, with no headers unless they are given."""
    headers = headers or [{}] * len(sent)
    return service.handle([read_request(each, header) for each, header in zip(sent, headers, strict=True)])

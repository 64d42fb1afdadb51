"""A scorer whose numbers can be checked by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import msgspec
import numpy as np
import pytest
from support.handed import handle
from support.one_output import one_output

from dlrm_factory.batch import FeatureBatch, SharedContext, tile_context
from dlrm_factory.config import DLRMDeclaration, ServingOptions, tiny
from dlrm_factory.requests.answers import Answer
from dlrm_factory.requests.service import DLRMService


class SumScorer:
    """logit = price + (sum of item_id's ids) / 100 + (sum of item_tags' ids) / 10."""

    def __init__(self, declaration: DLRMDeclaration) -> None:
        self.declaration = declaration
        self.batches: list[FeatureBatch] = []
        self.shared: list[SharedContext] = []

    @one_output
    def outputs(self, batch: FeatureBatch, shared: SharedContext | None = None) -> np.ndarray:
        self.batches.append(batch)
        if shared is not None:
            self.shared.append(shared)
            batch = tile_context(batch, shared)
        starts = np.concatenate(([0], np.cumsum(batch.lengths)))
        sums = [int(batch.values[a:b].sum()) for a, b in pairwise(starts)]
        _, item, tags = np.array(sums, dtype=np.float64).reshape(3, len(batch))
        return (batch.dense[:, 0] + item / 100 + tags / 10).astype(np.float32)


@pytest.fixture
def scorer() -> SumScorer:
    return SumScorer(
        msgspec.structs.replace(tiny(), serving=ServingOptions(max_samples=10, max_body_bytes=4000))
    )


@pytest.fixture
def service(scorer: SumScorer) -> DLRMService:
    return DLRMService(scorer)


Ask = Callable[[Any], tuple[int, Any]]


@pytest.fixture
def ask(service: DLRMService) -> Ask:
    """Sends one body (bytes as they are, anything else as JSON) and gives its status and answer."""

    def send(body: Any) -> tuple[int, Any]:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        answers: list[Answer] = handle(service, [{"body": bytearray(raw)}])
        assert len(answers) == 1
        return answers[0].status, json.loads(answers[0].body)

    return send

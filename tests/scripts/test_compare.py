"""References of the comparison, and its arithmetic."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from compare.archives import make_store
from compare.handlers.stock_handler import StockHandler
from compare.in_process import in_process_sample_rate
from compare.rows import ROWS, Row
from dlrm_factory.config import criteo, read_declaration
from dlrm_factory.requests.request import Request
from dlrm_factory.requests.service import DLRMService
from dlrm_factory.scorer import Scorer
from dlrm_factory.tools.archive.listing import read_archive_listing
from dlrm_factory.tools.bench.http.bodies import random_bodies


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(criteo(cap=200), tmp_path_factory.mktemp("compare"))


def test_every_archive_names_its_handler(store):
    handlers = {path.name: read_archive_listing(path).handler for path in store.folder.iterdir()}
    assert handlers == {
        "dlrm": "dlrm_handler.py",
        "dlrm_latency": "dlrm_handler.py",
        "echo": "echo_handler.py",
        "echo_latency": "echo_handler.py",
        "plain_echo": "plain_echo_handler.py",
        "plain_echo_latency": "plain_echo_handler.py",
        "stock": "stock_handler.py",
        "stock_default": "stock_handler.py",
    }
    batches = {
        name: read_declaration(store.folder / name / "declaration.yaml").serving.batch_requests
        for name in handlers
        if "stock" not in name
    }
    assert batches == {name: 1 if "latency" in name else 64 for name in batches}
    assert "batchSize: 64\nmaxBatchDelay: 2\n" in (store.folder / "stock" / "model-config.yaml").read_text()
    assert "batchSize" not in (store.folder / "stock_default" / "model-config.yaml").read_text()


def test_the_stock_handler_gives_the_models_scores(store):
    handler = StockHandler()
    handler.initialize(SimpleNamespace(system_properties={"model_dir": str(store.folder / "stock")}))
    bodies = random_bodies(criteo(cap=200), "1", body_format="torchserve")[:9]
    answers = handler.handle([{"body": json.loads(body.content)} for body in bodies], None)
    service = DLRMService(Scorer.load(store.sealed))
    expected = service.handle([Request(body.content) for body in bodies])
    scores = [json.loads(answer.body)["score"] for answer in expected]
    np.testing.assert_allclose([answer["score"] for answer in answers], scores, atol=1e-6)
    assert 0 < min(scores) < max(scores) < 1


def test_one_process_is_timed(store, tmp_path: Path):
    bodies = random_bodies(criteo(cap=200), "8")[:3]
    assert in_process_sample_rate(store.sealed, bodies, 0.2, tmp_path) > 8


def test_a_ratio_is_the_median_of_the_rounds():
    row = Row(work="w", reference="r", ours="a", theirs="b", bound=2.0)
    numbers = {"a": [10.0, 30.0, 8.0], "b": [5.0, 10.0, 8.0]}
    assert row.ratio(numbers) == 2.0
    assert row.met(numbers)
    assert not Row(work="w", reference="r", ours="a", theirs="b", bound=1.9, at_most=True).met(numbers)
    assert Row(work="w", reference="r", ours="a", theirs="b").met(numbers) is None
    assert len({(row.work, row.reference) for row in ROWS}) == len(ROWS)

"""Whatever requests share a batch: every id stays in its bag, and together they score as each does alone."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.batches import random_state
from support.depth import examples
from support.handed import handle
from support.one_output import one_output

from dlrm_factory.batch import FeatureBatch, SharedContext, tile_context, to_dense, to_keyed_jagged_tensors
from dlrm_factory.config import tiny
from dlrm_factory.factory import DLRMFactory
from dlrm_factory.features import hash_ids
from dlrm_factory.requests.service import DLRMService
from dlrm_factory.scorer import Scorer

USER_ROWS = 1000

ITEMS, TAGS = st.integers(0, 199), st.integers(0, 49)
USERS = st.one_of(st.integers(-(2**63), 2**63 - 1), st.text(max_size=8), st.sampled_from(["17", "-3", "017"]))
ROW = st.fixed_dictionaries(
    {
        "price": st.none() | st.floats(-1e3, 1e3, width=32),
        "user_id": st.none() | USERS | st.lists(USERS, max_size=3),
        "item_id": st.none() | ITEMS | st.lists(ITEMS, max_size=4),
        "item_tags": st.none() | TAGS | st.lists(TAGS, max_size=8),
    }
)
SHAPES = ["instances", "inputs", "upstream", "ranking rows", "ranking columns"]
REQUESTS = st.lists(st.tuples(st.sampled_from(SHAPES), st.lists(ROW, min_size=1, max_size=5)), max_size=8)

Row = dict[str, Any]


def bag(value: Any) -> list[Any]:
    return [] if value is None else value if isinstance(value, list) else [value]


def spelled(shape: str, rows: list[Row]) -> tuple[dict[str, Any], list[Row]]:
    """A request of ``shape``, and the samples that it asks for."""
    given = [{name: value for name, value in row.items() if value is not None} for row in rows]
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    if shape == "instances":
        return {"instances": given}, rows
    if shape == "inputs":
        return {"inputs": columns}, rows
    if shape == "upstream":
        bags = [bag(rows[0][name]) for name in ("user_id", "item_id", "item_tags")]
        return {
            "float_features": [rows[0]["price"], None],
            "id_list_features.lengths": [len(each) for each in bags],
            "id_list_features.values": [id for each in bags for id in each],
        }, rows[:1]
    user = rows[0]["user_id"]
    del columns["user_id"]
    candidates: Any = [{name: value for name, value in row.items() if name != "user_id"} for row in given]
    candidates = candidates if shape == "ranking rows" else columns
    return {"context": {"user_id": user}, "candidates": candidates}, [
        {**row, "user_id": user} for row in rows
    ]


class Recorder:
    """Gives each sample its own number, and keeps what it was to score."""

    declaration = tiny()

    @one_output
    def outputs(self, batch: FeatureBatch, shared: SharedContext | None = None) -> np.ndarray:
        self.batch = batch if shared is None else tile_context(batch, shared)
        return np.arange(len(batch), dtype=np.float32)


def ask(service: DLRMService, bodies: list[dict[str, Any]]) -> list[Any]:
    # Not ASCII: the strings go as UTF-8.
    raw = [json.dumps({**body, "output": "logit"}, ensure_ascii=False).encode() for body in bodies]
    answers = handle(service, [{"body": bytearray(each)} for each in raw])
    assert [answer.status for answer in answers] == [200] * len(bodies), answers
    return [json.loads(answer.body) for answer in answers]


def scores_of(answer: dict[str, Any]) -> list[float]:
    """Scores in the order of the samples."""
    if "ranking" in answer:
        return [each["score"] for each in sorted(answer["ranking"], key=lambda each: each["index"])]
    return answer.get("predictions", [answer.get("score")])


@given(REQUESTS.filter(bool))
def test_every_id_stays_in_its_bag(requests):
    bodies, samples = zip(*(spelled(*request) for request in requests), strict=True)
    rows = [row for of in samples for row in of]
    recorder = Recorder()
    answers = ask(DLRMService(recorder), list(bodies))
    # Each score tells which sample of the batch it is of; requests of one sample are put together.
    places = [int(score) for answer in answers for score in scores_of(answer)]
    assert sorted(places) == list(range(len(rows)))
    rows = [rows[places.index(i)] for i in range(len(rows))]

    jagged, _ = to_keyed_jagged_tensors(recorder.batch, recorder.declaration)
    found = {key: [bag.tolist() for bag in jagged[key].to_dense()] for key in jagged.keys()}  # noqa: SIM118
    assert found == {
        "user_id": [hash_ids(bag(row["user_id"]), USER_ROWS).tolist() for row in rows],
        "item_id": [bag(row["item_id"]) for row in rows],
        "item_tags": [bag(row["item_tags"]) for row in rows],
    }
    assert jagged.values().dtype == torch.int64
    prices = [row["price"] or 0.0 for row in rows]
    assert to_dense(recorder.batch)[:, 0].tolist() == prices


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    """Random weights, eager."""
    return Scorer(DLRMFactory(tiny()).build(weights=random_state(tiny())))


def rows_are_even() -> bool:
    """Test whether this machine's matrix products give a row the same bits in any batch of a multiple of 4 rows."""
    generator = torch.Generator().manual_seed(0)
    for width, out in [(2, 16), (16, 8), (14, 16), (16, 1)]:
        rows, weight = (
            torch.randn(64, width, generator=generator),
            torch.randn(out, width, generator=generator),
        )
        whole = torch.nn.functional.linear(rows, weight)
        for size in (4, 8, 12, 20, 36):
            if not torch.equal(torch.nn.functional.linear(rows[:size], weight), whole[:size]):
                return False
    return True


@settings(max_examples=examples(60))
@given(requests=REQUESTS.filter(bool))
def test_together_they_score_as_each_does_alone(scorer, requests):
    assert scorer.engine == "eager"
    service = DLRMService(scorer)
    bodies = [spelled(*request)[0] for request in requests]
    together = [scores_of(answer) for answer in ask(service, bodies)]
    alone = [scores_of(ask(service, [body])[0]) for body in bodies]
    if rows_are_even():
        # Answers hold every bit of a float32 score.
        assert together == alone
    for found, right in zip(together, alone, strict=True):
        assert found == pytest.approx(right, rel=0, abs=1e-6)

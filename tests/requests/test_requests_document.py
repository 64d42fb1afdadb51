"""docs/requests.md tells the truth: every request in it is sent."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from support.handed import handle
from support.several_outputs import CLICK, PURCHASE, TOWER, ByHand, declared

from dlrm_factory.config import tiny
from dlrm_factory.factory import DLRMFactory
from dlrm_factory.requests.service import DLRMService
from dlrm_factory.scorer import Scorer

DOCUMENT = Path(__file__).parents[2] / "docs" / "requests.md"
BLOCK = re.compile(r"^```json (request|answer)(?: (\w+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCKS = BLOCK.findall(DOCUMENT.read_text(encoding="utf-8"))
PAIRS = list(zip(BLOCKS[::2], BLOCKS[1::2], strict=True))


@pytest.fixture(scope="module")
def service() -> DLRMService:
    return DLRMService(Scorer(DLRMFactory(tiny()).build()))


def shape_of(answer: dict[str, Any]) -> Any:
    """An error whole; of scores, which depend on the weights, their number only."""
    if "code" in answer:
        return answer
    return {key: len(value) if isinstance(value, list) else type(value) for key, value in answer.items()}


@pytest.mark.parametrize(("request_", "expected"), PAIRS)
def test_each_example(service: DLRMService, request_: tuple[str, ...], expected: tuple[str, ...]) -> None:
    assert (request_[0], expected[0]) == ("request", "answer")
    header = {"explain": "True"} if request_[1] == "explain" else {}
    if request_[1] == "shop":
        service = DLRMService(ByHand(declared(CLICK, PURCHASE, TOWER)))
    (answer,) = handle(service, [{"body": request_[2].encode()}], [header])
    assert answer.status == int(expected[1] or 200)
    if request_[1] == "shop":  # whose numbers are known
        assert json.loads(answer.body) == json.loads(expected[2])
    assert shape_of(json.loads(answer.body)) == shape_of(json.loads(expected[2]))


def test_there_are_examples() -> None:
    assert len(PAIRS) == 21


def test_the_first_three_shapes_agree(service: DLRMService) -> None:
    bodies = [request_[2].encode() for request_, _ in PAIRS[:3]]
    rows, columns, flat = (json.loads(a.body) for a in handle(service, [{"body": body} for body in bodies]))
    assert rows == columns
    assert rows["predictions"][0] == flat["score"]


def test_rankings_as_rows_and_as_columns_agree(service: DLRMService) -> None:
    bodies = [request_[2].encode() for request_, _ in PAIRS[3:5]]
    rows, columns = (
        json.loads(a.body)["ranking"] for a in handle(service, [{"body": body} for body in bodies])
    )
    assert rows == columns[:2]
    for (_, answer), found in zip(PAIRS[3:5], (rows, columns), strict=True):
        assert [entry["id"] for entry in json.loads(answer[2])["ranking"]] == [entry["id"] for entry in found]


def test_defaults_are_the_declarations() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    for value in (
        tiny().serving.max_samples,
        tiny().serving.max_body_bytes,
        tiny().sparse_features[0].max_length,
    ):
        assert f"| {value} |" in text

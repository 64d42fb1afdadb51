"""Modules of one's own behind the service: sequences, several outputs and vectors, in every format."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from support.batches import random_state
from support.handed import handle

from dlrm_factory.config import read_declaration
from dlrm_factory.config.trust import TRUST_VARIABLE, trust_code
from dlrm_factory.factory import DLRMFactory
from dlrm_factory.requests.service import DLRMService
from dlrm_factory.scorer import Scorer, probabilities

NETS = Path(__file__).parents[1] / "models" / "nets"


def served(name: str) -> tuple[Scorer, DLRMService]:
    declaration = read_declaration(NETS / f"{name}.yaml")
    trust_code(declaration)
    scorer = Scorer(DLRMFactory(declaration).build(weights=random_state(declaration)))
    return scorer, DLRMService(scorer)


@pytest.fixture(autouse=True)
def _forget_trust(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TRUST_VARIABLE, os.environ.get(TRUST_VARIABLE, ""))


def predictions(service: DLRMService, *bodies: Any) -> list[Any]:
    raws = [body if isinstance(body, bytes) else json.dumps(body).encode() for body in bodies]
    answers = handle(service, [{"body": bytearray(raw)} for raw in raws])
    assert [answer.status for answer in answers] == [200] * len(bodies), answers
    return [json.loads(answer.body) for answer in answers]


ROWS = [
    {"price": 1.5, "item": 7, "user": 3, "history": [9, 9, 2, 299]},
    {"price": -0.5, "item": 8, "user": 4, "history": list(range(250))},  # truncated to 200
    {"item": 8, "history": 5},
    {},
]


def test_a_history_in_every_format() -> None:
    _, service = served("din")
    columns = {name: [row.get(name) for row in ROWS] for name in ("price", "item", "user", "history")}
    bags = [[] if bag is None else bag if isinstance(bag, list) else [bag] for bag in columns["history"]]
    table = pa.table({**columns, "history": bags})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    kserve = {
        "inputs": [
            {"name": "price", "shape": [4], "datatype": "FP32", "data": [1.5, -0.5, 0, 0]},
            *(
                tensor
                for name in ("item", "user", "history")
                for tensor in _jagged(name, bags if name == "history" else _bags(columns[name]))
            ),
        ]
    }
    rows, of_columns, arrow, tensors = predictions(
        service, {"instances": ROWS}, {"inputs": columns}, sink.getvalue().to_pybytes(), kserve
    )
    expected = rows["predictions"]
    assert len({round(score, 6) for score in expected}) == 4
    for found in (of_columns["predictions"], arrow["predictions"], tensors["outputs"][0]["data"]):
        assert found == pytest.approx(expected, abs=1e-6)
    # Alone and gathered, by the fast readers; as upstream has it; and by the reference.
    singles = predictions(service, *({"instances": [row]} for row in ROWS))
    assert [each["predictions"][0] for each in singles] == pytest.approx(expected, abs=1e-6)
    flat = {
        "float_features": [1.5],
        "id_list_features.lengths": [1, 1, 4],
        "id_list_features.values": [7, 3, 9, 9, 2, 299],
    }
    (found,) = predictions(service, flat)
    assert found["score"] == pytest.approx(expected[0], abs=1e-6)
    (reference,) = handle(service, [{"body": {"instances": ROWS}}])
    assert json.loads(reference.body)["predictions"] == pytest.approx(expected, abs=1e-6)
    assert service.read_counts.fast == 7


def _bags(column: list[Any]) -> list[list[int]]:
    return [[] if value is None else [value] for value in column]


def _jagged(name: str, bags: list[list[int]]) -> list[dict[str, Any]]:
    ids = [each for bag in bags for each in bag]
    return [
        {"name": name, "shape": [len(ids)], "datatype": "INT64", "data": ids},
        {
            "name": f"{name}.lengths",
            "shape": [len(bags)],
            "datatype": "INT32",
            "data": [len(bag) for bag in bags],
        },
    ]


def test_a_ranking_shares_a_history() -> None:
    _, service = served("din")
    context = {"user": 3, "history": [9, 2, 11], "price": 1}
    candidates = [{"item": item} for item in (7, 8, 9, 250)]
    ranking, rows = predictions(
        service,
        {"context": context, "candidates": candidates, "rank_by": "score * 2 + price"},
        {"instances": [{**context, **row} for row in candidates]},
    )
    for entry in ranking["ranking"]:
        assert entry["outputs"]["score"] == pytest.approx(rows["predictions"][entry["index"]], abs=1e-6)
        assert entry["score"] == entry["outputs"]["score"] * 2 + 1


def test_a_history_is_explained() -> None:
    _, service = served("din")
    row = {"item": 7, "history": [9, 2, 11], "price": 1}
    (answer,) = handle(service, [{"body": json.dumps({"instances": [row]}).encode()}], [{"explain": "True"}])
    (found,) = json.loads(answer.body)["explanations"]
    whole, without = (
        each["predictions"][0]
        for each in predictions(service, {"instances": [row]}, {"instances": [{**row, "history": []}]})
    )
    assert found["contributions"]["history"] == pytest.approx(whole - without, abs=1e-6)
    assert found["contributions"]["history"] != 0
    assert found["contributions"]["user"] == 0.0


def test_heads_and_towers_are_what_the_model_gives() -> None:
    for name, rows in {
        "mmoe": [{"price": 1, "age": 2, "user": 5, "tags": [1, 2]}, {"user": 7}],
        "two_towers": [{"user": 5, "tags": [1, 2], "item": 9}, {"item": 11}],
    }.items():
        scorer, service = served(name)
        declaration = scorer.declaration
        names = [output.name for output in declaration.all_outputs]
        (found,) = predictions(service, {"instances": rows, "outputs": names})
        columns = {f: [row.get(f) for row in rows] for f in service._reader.encoder.names}
        outputs = scorer.outputs(service._reader.encoder.encode(columns, len(rows)))
        for output in declaration.all_outputs:
            part = outputs[:, declaration.columns_of(output.name)]
            expected = probabilities(part)[:, 0] if output.kind == "probability" else part
            given = np.array([each[output.name] for each in found["predictions"]])
            np.testing.assert_allclose(given, expected, rtol=0, atol=1e-6)
            assert np.abs(given[0] - given[1]).max() > 1e-4
        default = [output.name for output in declaration.probabilities]
        (plain,) = predictions(service, {"instances": rows})
        if len(default) == 1:
            assert plain["predictions"] == [each[default[0]] for each in found["predictions"]]
        else:
            assert plain == found

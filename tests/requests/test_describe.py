from __future__ import annotations

import json
from typing import Any

import torch
from support.handed import handle

import dlrm_factory
from dlrm_factory.config import tiny
from dlrm_factory.factory import DLRMFactory
from dlrm_factory.requests.service import DLRMService
from dlrm_factory.scorer import Scorer

DESCRIBE = {"describe": "True"}


def describe(service: DLRMService) -> dict[str, Any]:
    (answer,) = handle(service, [{}], [DESCRIBE])
    assert answer.status == 200
    return json.loads(answer.body)


def test_schema_limits_plan_and_versions() -> None:
    scorer = Scorer(DLRMFactory(tiny()).build())
    service = DLRMService(scorer, model_name="ads", model_version="2.1", plan=scorer.built.plan.to_dict())
    found = describe(service)
    assert (found["name"], found["versions"], found["platform"]) == ("ads", ["2.1"], "torchserve_dlrm")
    assert [tensor["name"] for tensor in found["inputs"]] == [*tiny().dense_names, *tiny().sparse_names]
    assert found["inputs"][2] == {"name": "user_id", "datatype": "BYTES", "shape": [-1, -1]}
    assert found["outputs"] == [{"name": "score", "datatype": "FP32", "shape": [-1]}]
    assert found["dense_features"][1]["default"] == 30.0
    assert found["sparse_features"][2]["max_length"] == 8
    assert [table["dtype"] for table in found["tables"]] == [table.dtype for table in tiny().tables]
    assert found["limits"] == {"max_samples": 5000, "max_body_bytes": 6_553_500}
    assert found["engine"] == "eager"
    assert "eager_reason" not in found
    scorer.eager_reason = "No C++ compiler on this host"
    assert describe(service)["eager_reason"] == scorer.eager_reason
    assert found["package_versions"]["torch"] == torch.__version__
    assert found["package_versions"]["torchserve-dlrm"] == dlrm_factory.__version__
    assert [table["sharding"] for table in found["plan"]["tables"]] == ["table_wise"] * 3


def test_a_description_beside_other_requests(service: DLRMService) -> None:
    body = {"body": b'{"instances": [{}], "output": "logit"}'}
    answers = handle(service, [body, {}, body], [{}, DESCRIBE, {"explain": "False"}])
    assert [answer.status for answer in answers] == [200] * 3
    assert json.loads(answers[0].body) == json.loads(answers[2].body) == {"predictions": [0.0]}
    assert json.loads(answers[1].body)["architecture"] == "dlrm"


def test_a_client_with_a_body_gets_its_scores(service: DLRMService) -> None:
    # A client may send any header; only TorchServe's own question has no body.
    (answer,) = handle(service, [{"body": b'{"instances": [{}], "output": "logit"}'}], [DESCRIBE])
    assert json.loads(answer.body) == {"predictions": [0.0]}


def test_groups_that_wait_for_hosts_are_told_as_they_are_now(scorer) -> None:
    waiting: list[dict[str, Any]] = []
    service = DLRMService(scorer, waiting_groups=lambda: waiting)
    assert describe(service)["waiting_groups"] == []
    waiting.append({"port": 29601, "missing": [{"host": 1, "address": "10.0.0.2"}]})
    assert describe(service)["waiting_groups"] == waiting
    assert "waiting_groups" not in describe(DLRMService(scorer))

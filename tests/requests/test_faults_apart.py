"""A request that alone cannot be scored: its own error, and no harm to those it was joined with."""

from __future__ import annotations

import json
import logging
import os
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from support.batches import random_state
from support.handed import handle
from support.one_output import one_output

from dlrm_factory.batch import FeatureBatch
from dlrm_factory.config import DLRMDeclaration, ModuleArchitecture, ServingOptions, tiny
from dlrm_factory.config.trust import TRUST_VARIABLE, trust_code
from dlrm_factory.errors import GroupError
from dlrm_factory.factory import DLRMFactory
from dlrm_factory.requests.answers import Answer
from dlrm_factory.requests.service import DLRMService
from dlrm_factory.scorer import Scorer

# Logit price; 13, 14, ... are at fault. Line numbers are in the tests.
NET = """
import torch
from torch import nn
from dlrm_factory import LimitError, RequestError

class Refused(RequestError):
    code = 500

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.one = nn.Parameter(torch.ones(1))

    def forward(self, dense):
        price = dense[:, 0]
        if (price == 13).any():
            raise KeyError("thirteen\\nis not\\n" + "there " * 200)
        if (price == 14).any():
            raise RequestError("dense feature \\"price\\": 14 is not sold; send another", "$.price")
        if (price == 15).any():
            raise Refused("not this one")
        if (price == 16).any():
            raise LimitError("too much")
        if (price == 17).any():
            return price[price != 17]
        # Of a batch nobody sent, such as one of zeros.
        if (dense == 0).all(dim=1).any():
            raise RuntimeError("a price that nobody sent")
        return torch.where(price == 18, torch.nan, price)
"""


@pytest.fixture(autouse=True)
def _forget_trust(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TRUST_VARIABLE, os.environ.get(TRUST_VARIABLE, ""))


def declared(text: str = NET) -> DLRMDeclaration:
    found = msgspec.structs.replace(
        tiny(),
        architecture=ModuleArchitecture(module="net.py:Net", sources={"net.py": text}),
        dense_arch_layer_sizes=None,
        over_arch_layer_sizes=None,
        serving=ServingOptions(max_samples=600),
    )
    trust_code(found)
    return found


class Counting(Scorer):
    calls = 0

    def outputs(self, batch: FeatureBatch, shared: Any = None) -> np.ndarray:
        self.calls += 1
        return super().outputs(batch, shared)


@pytest.fixture
def scorer() -> Counting:
    declaration = declared()
    state = {**random_state(declaration), "one": torch.ones(1)}
    return Counting(DLRMFactory(declaration).build(weights=state))


@pytest.fixture
def service(scorer: Counting) -> DLRMService:
    return DLRMService(scorer)


def row(*prices: float) -> dict[str, Any]:
    return {"instances": [{"price": price} for price in prices], "output": "logit"}


def column(*prices: float) -> dict[str, Any]:
    return {"inputs": {"price": list(prices)}, "output": "logit"}


def ranking(*prices: float) -> dict[str, Any]:
    return {
        "context": {"user_id": 7},
        "candidates": [{"price": price} for price in prices],
        "output": "logit",
    }


def ask(service: DLRMService, *bodies: Any) -> list[Answer]:
    return handle(service, [{"body": bytearray(json.dumps(body).encode())} for body in bodies])


RIGHT = [row(1), column(2), row(3, 4), ranking(5, 6), column(7, 8), row(9)]


def test_neighbours_of_a_failing_request_get_their_scores(service: DLRMService, scorer: Counting) -> None:
    alone = [ask(service, body)[0] for body in RIGHT]
    assert [answer.status for answer in alone] == [200] * len(RIGHT)
    scorer.calls = 0
    # Some are gathered, and some are decoded each alone.
    wrong = {0: row(13), 3: column(14), 4: row(13, 1), 6: ranking(14, 2), 8: column(17), 10: row(1, 1, 15)}
    bodies = list(RIGHT)
    for place, body in wrong.items():
        bodies.insert(place, body)
    answers = ask(service, *bodies)
    assert [answer for i, answer in enumerate(answers) if i not in wrong] == alone
    assert {i: answers[i].status for i in wrong} == {0: 500, 3: 400, 4: 500, 6: 400, 8: 500, 10: 400}
    # One call for all, and then halves.
    assert scorer.calls < 2 * len(bodies)


CHANGING = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.one = nn.Parameter(torch.ones(1))

    def forward(self, dense):
        dense.mul_(2)
        if (dense[:, 0] == 26).any():
            raise ValueError("thirteen")
        return dense[:, 0] + 0
"""


@pytest.mark.parametrize("requests", [1, 3, 8, 16, 20])
def test_a_module_that_changes_its_inputs_changes_no_request(requests: int) -> None:
    declaration = declared(CHANGING)
    state = {**random_state(declaration), "one": torch.ones(1)}
    service = DLRMService(Scorer(DLRMFactory(declaration).build(weights=state)))
    answers = ask(service, *(row(1 + i) for i in range(requests)), row(13))
    assert [answer.status for answer in answers] == [500 if i == 12 else 200 for i in range(requests)] + [500]
    found = [json.loads(answer.body).get("predictions") for answer in answers]
    assert found == [None if i == 12 else [2.0 * (1 + i)] for i in range(requests)] + [None]


def test_causes_that_go_in_a_circle_end() -> None:
    class Circle:
        declaration = tiny()

        @one_output
        def outputs(self, batch: Any, shared: Any = None) -> Any:
            first, second = ValueError("first"), ValueError("second")
            first.__cause__, second.__cause__ = second, first
            raise first

    (answer,) = ask(DLRMService(Circle()), row(1))
    assert answer.status == 500


def test_what_a_failing_request_is_told(service: DLRMService) -> None:
    failed, refused, own_kind, too_much, short = ask(service, *(row(price) for price in range(13, 18)))
    found = json.loads(failed.body)
    assert (failed.status, found["code"], found["type"], found["path"]) == (500, 500, "ModuleError", "$")
    assert found["message"].startswith("Net cannot score: net.py:17 (forward): KeyError: 'thirteen")
    assert len(found["message"]) < 520
    assert (refused.status, json.loads(refused.body)) == (
        400,
        {
            "code": 400,
            "type": "RequestError",
            "message": 'dense feature "price": 14 is not sold; send another',
            "path": "$.price",
        },
    )
    # A class of the module's own cannot choose the status.
    assert (own_kind.status, json.loads(own_kind.body)["message"]) == (400, "not this one")
    assert too_much.status == 413
    assert 'as output "score" for B = 4 samples; return [B]' in json.loads(short.body)["message"]


def test_one_of_many_costs_a_few_calls(service: DLRMService, scorer: Counting) -> None:
    prices = [1.0] * 64
    prices[37] = 13
    answers = ask(service, *(row(price) for price in prices))
    assert [answer.status for answer in answers] == [200] * 37 + [500] + [200] * 26
    assert scorer.calls == 1 + 2 * 6
    scorer.calls = 0
    assert {answer.status for answer in ask(service, *(row(1) for _ in prices))} == {200}
    assert scorer.calls == 1


def test_only_the_part_of_a_large_batch_that_fails_is_scored_again(
    service: DLRMService, scorer: Counting
) -> None:
    large = column(*[1.0] * 512)
    answers = ask(service, large, row(13), row(1), large)
    assert [answer.status for answer in answers] == [200, 500, 200, 200]
    # Two of a large one each, one of both small ones, and two of each alone.
    assert scorer.calls == 2 + 1 + 2


def test_a_fault_is_logged_whole_once(service: DLRMService, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        ask(service, row(13), row(13), row(14))
        ask(service, row(13))
        ask(service, row(17))
    whole = [record for record in caplog.records if record.exc_info]
    assert len(whole) == 2
    assert "thirteen" in str(whole[0].exc_info[1].__cause__)
    brief = [record.getMessage() for record in caplog.records if not record.exc_info]
    assert len(brief) == 2
    assert all("net.py:17" in each for each in brief)
    assert "14 is not sold" not in caplog.text


def test_an_answer_names_the_output_and_the_sample_that_are_not_finite(service: DLRMService) -> None:
    alone, second, of_ranking = ask(service, row(18), row(1, 18), ranking(1, 2, 18))
    for answer, sample in ((alone, 0), (second, 1), (of_ranking, 2)):
        message = json.loads(answer.body)["message"]
        assert (answer.status, message) == (
            500,
            f'the model\'s output "score" of sample {sample} is not a finite number',
        )
    rows = [{"price": price, "age_days": 1} for price in (1, 18)]
    (explained,) = handle(service, [{"body": {"instances": rows}}], [{"explain": "True"}])
    assert 'output "score" of sample 1 ' in json.loads(explained.body)["message"]


def test_a_lost_group_is_not_asked_again() -> None:
    calls = []

    class Lost:
        declaration = tiny()

        @one_output
        def outputs(self, batch: FeatureBatch) -> np.ndarray:
            calls.append(len(batch))
            if len(batch) > 2:
                raise RuntimeError("too many")
            raise GroupError("a rank is gone")

    service = DLRMService(Lost())
    answers = ask(service, row(1), row(2))
    assert [answer.status for answer in answers] == [503, 503]
    assert json.loads(answers[0].body)["type"] == "GroupLost"
    assert calls == [2]
    assert [answer.status for answer in ask(service, *(row(i) for i in range(4)))] == [503] * 4
    assert calls == [2, 4, 2, 2]

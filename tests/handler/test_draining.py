"""A worker that is to go holds its batch, and no request is answered by two workers."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path

import pytest

from dlrm_factory.host.worker_file import WorkerFolder, worker_folder
from dlrm_factory.requests.answers import Answer, answer_json, answer_scaled_away
from dlrm_factory.requests.request import Ask, Request
from handler.draining import MAX_HOLD_S, Draining

IDS = {0: "a", 1: "b", 2: "c"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return worker_folder("/models/abc", tmp_path)


def answer(draining: Draining, ids: dict[int, str] | None) -> frozenset[int]:
    draining.begin_batch(ids, by_http=True)
    return draining.begin_answers(ids)


def test_answers_go_out_as_they_are(folder: Path) -> None:
    assert answer(Draining(WorkerFolder(folder, 1)), IDS) == frozenset()
    assert answer(Draining(None), IDS) == frozenset()
    assert answer(Draining(WorkerFolder(folder, 2)), None) == frozenset()


def test_requests_of_a_worker_that_answered_them_are_known(folder: Path) -> None:
    gone, left = Draining(WorkerFolder(folder, 1)), Draining(WorkerFolder(folder, 2))
    assert answer(gone, IDS) == frozenset()
    left.begin_batch({0: "x", 1: "c", 2: "b", 3: "y", 5: "a"}, by_http=True)
    # A call that is left out of the answer has no id any more.
    assert left.begin_answers({0: "x", 2: "b", 3: "y", 5: "a"}) == {2, 5}


def test_the_error_for_them_may_be_tried_again() -> None:
    answer = answer_scaled_away()
    assert answer.status == 503
    assert json.loads(answer.body)["type"] == "WorkerScaledAway"


def test_requests_of_a_worker_that_only_held_them_are_scored(folder: Path) -> None:
    going, left = WorkerFolder(folder, 1), Draining(WorkerFolder(folder, 2))
    going.own.drain = True
    holding = Draining(going)
    holding.begin_batch(IDS, by_http=True)
    holding.hold(clock=iter([0.0, MAX_HOLD_S]).__next__)
    assert answer(left, IDS) == frozenset()


def test_a_drained_worker_holds_until_it_is_released(folder: Path) -> None:
    worker = WorkerFolder(folder, 1)
    worker.own.drain = True
    pauses = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        assert worker.own.holding
        if len(pauses) == 5:
            worker.own.drain = False

    Draining(worker).hold(clock=lambda: 0.0, pause=pause)
    assert len(pauses) == 5
    assert not worker.own.holding


def test_a_worker_that_nobody_ends_serves_on(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    worker = WorkerFolder(folder, 1)
    worker.own.drain = True
    now = [0.0]

    def pause(seconds: float) -> None:
        now[0] += 1.0

    with caplog.at_level(logging.WARNING):
        Draining(worker).hold(clock=lambda: now[0], pause=pause)
    assert now[0] == MAX_HOLD_S
    assert not worker.own.drain
    assert "serves on" in caplog.text
    Draining(worker).hold(pause=lambda _: pytest.fail("not drained any more"))


def test_a_worker_that_cannot_tell_the_others_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    with caplog.at_level(logging.WARNING):
        draining = Draining.for_model("/models/abc")
    assert "may be answered twice" in caplog.text
    draining.hold()
    assert answer(draining, IDS) == frozenset()


class OneScore:
    """Service whose every answer is 0.5."""

    model_name, model_version, max_body_bytes = "dlrm", "1.0", 100

    def handle(self, requests: Sequence[Request]) -> list[Answer]:
        return [answer_json({"score": 0.5}) for _ in requests]


def test_a_worker_that_goes_away_turns_each_request_away(folder: Path) -> None:
    worker = WorkerFolder(folder, 1)
    draining = Draining(worker)
    request = Request(b"{}", {}, Ask.SCORES, False)
    assert draining.service(OneScore()).handle([request])[0].status == 200
    worker.own.turns_away = True
    found = draining.service(OneScore())
    answers = found.handle([request, request])
    assert [(answer.status, json.loads(answer.body)["type"]) for answer in answers] == [
        (503, "GoingAway")
    ] * 2
    assert (found.model_name, found.model_version, found.max_body_bytes) == ("dlrm", "1.0", 100)
    assert Draining(None).service(OneScore()).handle([request])[0].status == 200


def test_a_worker_is_busy_from_a_batch_to_its_answers(folder: Path) -> None:
    worker = WorkerFolder(folder, 1)
    draining = Draining(worker)
    for ids in (IDS, None):
        assert not worker.own.busy
        draining.hold()
        assert worker.own.busy
        draining.begin_answers(ids)
    assert not worker.own.busy

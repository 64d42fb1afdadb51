"""Requests read together are read as each alone by the reference reader, or left to it."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.depth import examples
from support.handed import handle
from support.json_bodies import bodies, damaged, upstream_bodies
from support.one_output import one_output
from support.references import reference

from dlrm_factory.batch import FeatureBatch
from dlrm_factory.config import DLRMDeclaration, tiny
from dlrm_factory.features import FeatureEncoder
from dlrm_factory.requests import service as service_module
from dlrm_factory.requests.answers import Answer
from dlrm_factory.requests.formats import RequestReader
from dlrm_factory.requests.formats.fast import Gathered, GatheringReader
from dlrm_factory.requests.service import DLRMService

DECLARATION = tiny()


def with_ids(ids: str) -> DLRMDeclaration:
    features = [msgspec.structs.replace(feature, ids=ids) for feature in DECLARATION.sparse_features]
    return msgspec.structs.replace(DECLARATION, sparse_features=features)


READERS = [
    RequestReader(encoder=FeatureEncoder(declaration), max_samples=6)
    for declaration in (DECLARATION, with_ids("hash"), with_ids("index"))
]
ONE_SAMPLE = bodies(st.sampled_from([1, 1, 1, 1, 1, 1, 0, 2])) | upstream_bodies()


def gather(raws: Sequence[bytes], reader: RequestReader) -> list[Gathered]:
    return GatheringReader(reader).read(list(enumerate(raws)))


def sample_of(batch: FeatureBatch, i: int) -> FeatureBatch:
    ends = np.cumsum(batch.lengths).reshape(batch.lengths.shape)
    starts = ends - batch.lengths
    bags = [batch.values[a:b] for a, b in zip(starts[:, i], ends[:, i], strict=True)]
    return FeatureBatch(
        dense=batch.dense[i : i + 1], lengths=batch.lengths[:, i : i + 1], values=np.concatenate(bags)
    )


def assert_same(gathered: Gathered, raws: Sequence[bytes], reader: RequestReader) -> None:
    assert len(gathered.batch) == len(gathered.samples) <= reader.max_samples
    assert gathered.batch.lengths.sum() == len(gathered.batch.values)
    for i, sample in enumerate(gathered.samples):
        alone = reference(raws[sample.place], reader)
        assert alone is not None, raws[sample.place]
        assert len(alone.batch) == 1
        found = sample_of(gathered.batch, i)
        for field in ("dense", "lengths", "values"):
            a, b = getattr(found, field), getattr(alone.batch, field)
            assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes()), (field, raws)
        assert (sample.as_logit, sample.form) == (alone.as_logit, alone.form)


def check(raws: Sequence[bytes]) -> None:
    for reader in READERS:
        found = gather(raws, reader)
        places = [sample.place for each in found for sample in each.samples]
        assert len(set(places)) == len(places)
        for each in found:
            assert_same(each, raws, reader)


@given(st.lists(ONE_SAMPLE, min_size=1, max_size=9))
@settings(max_examples=examples(300))
def test_each_is_read_as_alone_or_left(raws: list[bytes]) -> None:
    check(raws)


@given(st.lists(ONE_SAMPLE, min_size=1, max_size=5), st.randoms(use_true_random=False))
@settings(max_examples=examples(200))
def test_damage_stays_with_its_own_request(raws: list[bytes], rng: random.Random) -> None:
    check([damaged(raw, rng) if rng.random() < 0.5 else raw for raw in raws])


GOOD = b'{"inputs": {"price": [1.5], "age_days": [2], "user_id": [7], "item_id": [3], "item_tags": [4]}}'
ROW = b'{"instances": [{"price": 1.5, "age_days": 2, "user_id": 7, "item_id": 3, "item_tags": 4}]}'
OWN = (
    b'{"float_features": [1, 2], "id_list_features.lengths": [1, 1, 1], "id_list_features.values": [7, 3, 4]}'
)
TAKEN = {
    "columns": GOOD,
    "rows": ROW,
    "upstream": OWN,
    "logit": GOOD[:-1] + b', "output": "logit"}',
    "some features": b'{"inputs": {"item_id": [3]}}',
    "no feature": b'{"instances": [{}]}',
    "null": b'{"inputs": {"price": [null], "item_id": [null], "user_id": [8]}}',
    "bags": b'{"inputs": {"item_tags": [[1, 2, 3]], "user_id": [[]]}}',
    "upstream bags": b'{"float_features": [1, null], "id_list_features.lengths": [0, 2, 1],'
    b' "id_list_features.values": [7, 3, 4]}',
    "strings": b'{"instances": [{"user_id": "u17"}]}',
    "columns with keys twice": b'{"inputs": {"price": [1], "price": [2]}, "output": "logit", "output": "probability"}',
    "rows with keys twice": b'{"instances": [{"price": 1, "price": 2, "user_id": 4, "p\\u0072ice": null}]}',
    "upstream with a key twice": OWN[:-1] + b', "float_features": [3, 4]}',
    "colons in strings": b'{"instances": [{"user_id": ["a:b", "::"], "price": 3}]}',
}


@pytest.mark.parametrize("name", TAKEN)
def test_right_requests_are_taken(name: str) -> None:
    for raws in ([TAKEN[name]], [ROW, TAKEN[name], GOOD, OWN], [TAKEN[name]] * 5):
        (gathered,) = gather(raws, READERS[0])
        assert [sample.place for sample in gathered.samples] == list(range(len(raws)))
        assert_same(gathered, raws, READERS[0])


LEFT = [
    b'{"inputs": {"price": [1, 2]}}',
    b'{"inputs": {"price": []}}',
    b'{"inputs": {}}',
    b'{"inputs": [1]}',
    b'{"instances": []}',
    b'{"instances": [{}, {}]}',
    b'{"inputs": {"price": [1, 2], "price": [2]}}',
    b'{"instances": [{"price": "1", "price": 1}]}',
    b'{"instances": [{"price": 1}], "output": "odds"}',
    b'{"instances": [{"prise": 1}]}',
    b'{"inputs": {"item_id": [200]}}',
    b'{"inputs": {"item_id": [true]}}',
    b'{"inputs": {"price": [1e39]}}',
    OWN.replace(b"[1, 1, 1]", b"[1, 1, 2]"),
    OWN.replace(b"[1, 1, 1]", b"[1, -1, 3]"),
    OWN.replace(b"[1, 1, 1]", b"[1, 1]"),
    OWN.replace(b"[1, 2]", b"[1, 2, 3]"),
    # Two bodies that would be one, were they joined.
    b'{"inputs": {"price": [1',
    b"]}}",
    GOOD + b", " + GOOD,
    GOOD + b"\n" + GOOD,
    b"",
]


@pytest.mark.parametrize("raw", LEFT)
def test_wrong_and_other_requests_are_left_alone(raw: bytes) -> None:
    assert gather([raw], READERS[0]) == []
    raws = [GOOD, raw, ROW, OWN]
    taken = [sample.place for each in gather(raws, READERS[0]) for sample in each.samples]
    assert sorted(taken) == [0, 2, 3]
    for each in gather(raws, READERS[0]):
        assert_same(each, raws, READERS[0])


def test_no_more_than_max_samples_are_joined() -> None:
    sizes = [len(each.batch) for each in gather([GOOD] * 14, READERS[0])]
    assert sizes == [6, 6, 2]


class Alone(DLRMService):
    """Reads every request on its own."""

    def __init__(self, scorer: Any) -> None:
        super().__init__(scorer)
        self._decoder.gather = lambda requests: []  # type: ignore[method-assign]


class Sums:
    """logit = price + the sum of all rows."""

    declaration = DECLARATION

    @one_output
    def outputs(self, batch: FeatureBatch) -> np.ndarray:
        sums = [sample_of(batch, i).values.sum() for i in range(len(batch))]
        return (batch.dense[:, 0] + np.array(sums) / 1000).astype(np.float32)


PLAIN = {"Content-Type": "application/json", "Accept": "*/*"}


@given(st.lists(ONE_SAMPLE, min_size=1, max_size=6))
@settings(max_examples=examples(100))
def test_answers_are_those_of_requests_read_alone(raws: list[bytes]) -> None:
    requests = [{"body": bytearray(raw)} for raw in raws]
    headers = [PLAIN] * len(raws)
    together = handle(DLRMService(Sums()), requests, headers)
    assert together == handle(Alone(Sums()), requests, headers)


def test_wrong_requests_get_the_answers_of_the_reference() -> None:
    requests = [{"body": raw} for raw in [GOOD, *LEFT, ROW]]
    answers = handle(DLRMService(Sums()), requests)
    assert answers == handle(Alone(Sums()), requests)
    assert {answer.status for answer in answers} == {200, 400}


def test_a_request_with_unusual_headers_is_not_gathered(monkeypatch: pytest.MonkeyPatch) -> None:
    answered: list[Answer] = []
    monkeypatch.setattr(
        service_module, "answer_ones", lambda forms, numbers: answered.extend([None] * len(numbers)) or []
    )
    for name, value in [("accept", "Application/VND.apache.arrow.stream"), ("explain", "True")]:
        answers = handle(
            DLRMService(Sums()), [{"body": GOOD}], [{"Content-Type": "application/json", name: value}]
        )
        assert answers[0].status == 200
        assert b'{"predictions"' not in answers[0].body
    (answer,) = handle(
        DLRMService(Sums()), [{"body": GOOD}], [{"content-type": "application/vnd.apache.arrow.stream"}]
    )
    assert answer.status == 400
    assert answered == []


def test_requests_as_torchserve_hands_them_over_are_gathered(monkeypatch: pytest.MonkeyPatch) -> None:
    headers = {
        "body": {"content-type": "application/json"}, "explain": "False", "describe": "False", "host": "h", **PLAIN
    }  # fmt: skip
    service = DLRMService(Sums())
    monkeypatch.setattr(service, "_read_one", None)
    answers = handle(service, [{"body": bytearray(raw)} for raw in (GOOD, ROW, OWN)], [headers] * 3)
    assert [answer.status for answer in answers] == [200] * 3


def test_a_body_over_its_limit_is_refused() -> None:
    serving = msgspec.structs.replace(DECLARATION.serving, max_body_bytes=len(GOOD) - 1)
    scorer = Sums()
    scorer.declaration = msgspec.structs.replace(DECLARATION, serving=serving)
    answers = handle(DLRMService(scorer), [{"body": GOOD}, {"body": ROW}])
    assert [answer.status for answer in answers] == [413, 200]


def test_a_score_that_is_not_finite_is_that_requests_error() -> None:
    class Overflowing(Sums):
        @one_output
        def outputs(self, batch: FeatureBatch) -> np.ndarray:
            return np.where(np.abs(batch.dense[:, 0]) > 10, np.nan, batch.dense[:, 0]).astype(np.float32)

    bodies_ = [{"instances": [{"price": price}], "output": "logit"} for price in (1, 3e38, 2, 11)]
    answers = handle(DLRMService(Overflowing()), [{"body": json.dumps(body).encode()} for body in bodies_])
    assert [answer.status for answer in answers] == [200, 400, 200, 500]
    assert json.loads(answers[1].body)["path"] == "$.instances[0].price"
    assert json.loads(answers[2].body) == {"predictions": [2.0]}
    paths = {
        b'{"inputs": {"item_id": [3], "price": [3e38]}}': "$.inputs.price[0]",
        b'{"instances": [{"item_id": 3, "price": 3e38}]}': "$.instances[0].price",
        OWN.replace(b"[1, 2]", b"[3e38, 2]"): "$.float_features[0]",
    }
    answers = handle(DLRMService(Overflowing()), [{"body": raw} for raw in paths])
    assert [json.loads(answer.body)["path"] for answer in answers] == list(paths.values())
    # One decoding gave all of this: read alone, by the reference, each says the same.
    assert answers == handle(Alone(Overflowing()), [{"body": raw} for raw in paths])


def test_a_fault_in_reading_together_leaves_each_to_be_read_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    service = DLRMService(Sums())

    def fail(*_: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(service._decoder._fast._gathering, "read", fail)
    answers = handle(service, [{"body": GOOD}, {"body": b"{"}])
    assert [answer.status for answer in answers] == [200, 400]
    assert "The fast reader 'gathered' failed" in caplog.text

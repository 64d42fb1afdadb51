"""Counts of a service, as whoever exports metrics reads them."""

from __future__ import annotations

import json
import logging
import math

import msgspec
import numpy as np
import pytest
from support.monitoring import DECLARATION, counted_service

from dlrm_factory.features import FeatureEncoder, build_vocabularies
from dlrm_factory.monitoring.metrics_file import read_metrics_file
from dlrm_factory.monitoring.score_log import ScoreLog, keys_of, read_scores
from dlrm_factory.requests.request import Ask, Request

ROW = {"price": 0.0, "age": 40.0, "user": "u1", "item": 3, "tags": [1]}
UPSTREAM = {
    "float_features": [0, 40],
    "id_list_features.lengths": [1, 1, 1],
    "id_list_features.values": [5, 3, 1],
}
TENSORS = {
    "inputs": [
        {"name": "price", "shape": [2], "datatype": "FP32", "data": [0, 1]},
        {"name": "item", "shape": [2], "datatype": "INT64", "data": [3, 4]},
    ]
}


def counts(folder):
    """Numbers by family, then by label values; a histogram's are a list."""
    (path,) = folder.glob("*.metrics")
    reading = read_metrics_file(path)
    return {
        place.family.name: {
            series: numbers[0] if len(numbers) == 1 else numbers.tolist()
            for series, numbers in zip(place.series, reading.family(place), strict=True)
        }
        for place in reading.head.families
    }


def positive(found):
    return {series: value for series, value in found.items() if value}


def request(body, **more):
    return Request(body if isinstance(body, bytes) else json.dumps(body).encode(), **more)


@pytest.fixture
def served(tmp_path):
    service, observer = counted_service(tmp_path)

    def ask(*bodies, together=True):
        requests = [body if isinstance(body, Request) else request(body) for body in bodies]
        answers = service.handle(requests) if together else [service.handle([each])[0] for each in requests]
        observer.flush()
        return [answer.status for answer in answers], counts(tmp_path)

    return ask


BODIES = [
    {"instances": [ROW]},
    {"instances": [ROW, ROW]},
    {"inputs": {name: [value] for name, value in ROW.items()}},
    UPSTREAM,
    {"context": {"user": 1}, "candidates": [{"item": 1}, {"item": 2}, {"item": 3}]},
    TENSORS,
    {"instances": [{"item": 900}]},
    b"nonsense",
    {"instances": [ROW] * 1001},
    Request(b"", ask=Ask.DESCRIPTION),
]


@pytest.mark.parametrize("together", [True, False])
def test_requests_and_samples_by_shape_and_status(served, together):
    statuses, found = served(*BODIES, together=together)
    assert statuses == [200] * 6 + [400, 400, 413, 200]
    assert positive(found["dlrm_requests_total"]) == {
        ("rows", "200"): 2,
        ("columns", "200"): 1,
        ("torchserve", "200"): 1,
        ("ranking", "200"): 1,
        ("kserve", "200"): 1,
        ("unread", "400"): 2,
        ("unread", "413"): 1,
        ("unread", "200"): 1,
    }
    assert positive(found["dlrm_samples_total"]) == {
        ("rows",): 3,
        ("columns",): 1,
        ("torchserve",): 1,
        ("ranking",): 3,
        ("kserve",): 2,
    }
    batches = found["dlrm_batch_requests"][()]
    assert sum(batches[:-1]) == (1 if together else len(BODIES))
    assert batches[-1] == len(BODIES)
    assert found["dlrm_batch_samples"][()][-1] == 10


def test_times_of_the_stages_add_up_to_the_batch(served):
    _, found = served({"instances": [ROW]}, {"instances": [ROW]}, together=False)
    stages = found["dlrm_stage_duration_seconds"]
    assert set(stages) == {("decode",), ("score",), ("encode",)}
    assert all(sum(stage[:-1]) == 2 and stage[-1] > 0 for stage in stages.values())
    total = found["dlrm_batch_duration_seconds"][()]
    assert sum(total[:-1]) == 2
    assert total[-1] == pytest.approx(sum(stage[-1] for stage in stages.values()))


def test_scores_are_probabilities(served):
    logits = [-3.0, -1.0, 0.0]
    _, found = served({"instances": [{**ROW, "price": price} for price in logits]})
    scores = found["dlrm_score"][()]
    assert sum(scores[:-1]) == 3
    assert scores[-1] == pytest.approx(sum(1 / (1 + math.exp(-logit)) for logit in logits))


def test_a_score_that_is_not_finite_is_no_score_and_its_status_counts(served):
    statuses, found = served({"instances": [ROW]}, {"instances": [{**ROW, "price": 3e38}], "output": "logit"})
    assert statuses == [200, 200]
    assert sum(found["dlrm_score"][()][:-1]) == 2


@pytest.mark.parametrize(
    "body",
    [
        {"instances": [{"item": 3, "tags": []}, {**ROW, "price": None}]},
        {
            "inputs": {
                "price": [None, None],
                "age": [None, 1.0],
                "item": [3, 3],
                "tags": [[], [1]],
                "user": [None, 1],
            }
        },
        {"inputs": {"age": [None, 1.0], "item": [3, 3], "tags": [None, 1], "user": [None, 1]}},
        {"inputs": {"age": [None, 1.0], "item": [3, 3], "tags": [None, [1]], "user": [None, "u1"]}},
    ],
)
def test_missing_values_by_feature(served, body):
    _, found = served(body)
    assert positive(found["dlrm_feature_missing_total"]) == {
        ("price",): 2,
        ("age",): 1,
        ("user",): 1,
        ("tags",): 1,
    }


def test_missing_values_of_many_requests_of_one_sample(served):
    _, found = served(
        {"instances": [{"item": 3}]}, {"instances": [{**ROW, "age": None}]}, {"instances": [ROW]}
    )
    missing = positive(found["dlrm_feature_missing_total"])
    assert missing == {("price",): 1, ("age",): 2, ("user",): 1, ("tags",): 1}


@pytest.mark.parametrize("candidates", [2, 20])
def test_a_context_lacks_nothing_that_the_candidates_have(served, candidates):
    body = {"context": {"age": None, "user": "u1"}, "candidates": [{"item": 1, "price": 2.0}] * candidates}
    _, found = served(body)
    assert positive(found["dlrm_feature_missing_total"]) == {("age",): candidates, ("tags",): candidates}


def test_arrow_lacks_what_json_would(served):
    pa = pytest.importorskip("pyarrow")
    batch = pa.record_batch({"price": pa.array([1.0, None]), "item": pa.array([1, 2])})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as stream:
        stream.write_batch(batch)
    body = sink.getvalue().to_pybytes()
    _, found = served(request(body, headers={"Content-Type": "application/vnd.apache.arrow.stream"}))
    assert positive(found["dlrm_samples_total"]) == {("arrow",): 2}
    missing = positive(found["dlrm_feature_missing_total"])
    assert missing == {("price",): 1, ("age",): 2, ("user",): 2, ("tags",): 2}


def test_truncated_bags_by_feature(served):
    _, found = served({"instances": [{**ROW, "tags": [1, 2, 3, 4]}, ROW]})
    assert found["dlrm_feature_truncated_bags_total"] == {("tags",): 1}


@pytest.mark.parametrize("policy", ["drop", 3])
def test_unknown_ids_by_feature(policy):
    features = list(DECLARATION.sparse_features)
    features[1] = msgspec.structs.replace(features[1], ids="vocabulary", out_of_vocabulary=policy)
    declaration = msgspec.structs.replace(DECLARATION, sparse_features=features)
    vocabularies = build_vocabularies({"items": ["a", "b"]})
    encoder = FeatureEncoder(declaration, vocabularies)
    batch = encoder.encode({"item": ["a", "x", ["b", "y", "z"]], "user": [1, 2, 3]}, 3)
    assert batch.substitutions.unknown_ids.tolist() == [0, 3, 0]
    assert encoder.encode({"item": ["a", "b"]}, 2).substitutions.unknown_ids is None


def test_reads_and_engine(served):
    _, found = served({"instances": [ROW]}, {"instances": [ROW, ROW]}, {"instances": [{"itme": 1}, ROW]})
    reads = positive(found["dlrm_reads_total"])
    assert reads[("gathered", "read")] == 1
    assert reads[("rows", "read")] == 1
    assert reads[("reference", "read")] == 1
    assert found["dlrm_workers"] == {("eager",): 1, ("compiled",): 0}


def test_many_scores_are_sampled_and_all_samples_counted(served):
    rows = [ROW] * 900
    _, found = served(*[{"instances": rows}] * 20)
    assert found["dlrm_samples_total"][("rows",)] == 18_000
    assert 6000 <= sum(found["dlrm_score"][()][:-1]) <= 8192


def test_scores_of_named_requests_are_kept(served, tmp_path):
    rows = [{**ROW, "price": float(price)} for price in (-1, 2)]
    served(
        request({"instances": rows}, id="r1"),
        request({"instances": [{**ROW, "price": 5.0}]}, id="r2"),
        request({"instances": [ROW]}),
    )
    records = read_scores(list(tmp_path.glob("*.scores")))
    kept = dict(zip(records["key"].tolist(), records["logit"].tolist(), strict=True))
    first, second = keys_of("r1", np.arange(2, dtype=np.uint64)).tolist()
    (third,) = keys_of("r2", np.arange(1, dtype=np.uint64)).tolist()
    assert kept == {first: -1.0, second: 2.0, third: 5.0}


def test_the_ring_of_scores_keeps_the_latest(tmp_path):
    log = ScoreLog(tmp_path / "1.scores", capacity=4)
    for i in range(6):
        log.write(f"r{i}", np.array([i], dtype=np.float32), 1000.0 + i)
    assert read_scores([tmp_path / "1.scores"])["logit"].tolist() == [2, 3, 4, 5]
    (tmp_path / "2.scores").write_bytes(b"no ring at all, or of another version")
    assert len(read_scores([tmp_path / "1.scores", tmp_path / "2.scores", tmp_path / "none"])) == 4


def test_a_fault_costs_no_answer_and_is_logged_once(served, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("dlrm_factory.requests.observing.ServiceObserver._note", None)
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            statuses, _ = served({"instances": [ROW]}, {"instances": [ROW]})
            assert statuses == [200, 200]
    (record,) = caplog.records
    assert "no longer counted" in record.getMessage()


def test_the_thread_counts_by_itself(tmp_path):
    service, observer = counted_service(tmp_path)
    observer.start(every_s=0.01)
    service.handle([request({"instances": [ROW]})])
    observer.stop()
    assert counts(tmp_path)["dlrm_requests_total"][("rows", "200")] == 1

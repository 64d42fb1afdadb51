"""A feature that shifts shows, and no other."""

from __future__ import annotations

import json

import numpy as np
import pytest
from support.monitoring import NOW, counted_service, reference_of, rows

from dlrm_factory.monitoring.metrics_file import read_metrics_file
from dlrm_factory.monitoring.stability import psi
from dlrm_factory.requests.request import Request

ALARM = 0.2  # as the alert rules have it
SAMPLES = 2000


@pytest.fixture(scope="module")
def reference():
    return reference_of()


def found_psi(path, now=NOW, window=1800.0):
    reading = read_metrics_file(path)
    samples, counts = reading.drift_window(window, now)
    found, at = {}, 0
    for part in reading.head.drift.parts:
        found[part.feature or "score"] = psi(counts[at : at + len(part.shares)], part.shares)
        at += len(part.shares)
    return samples, found


def send(service, observer, samples):
    for start in range(0, len(samples), 64):
        bodies = [json.dumps({"instances": [row]}).encode() for row in samples[start : start + 64]]
        service.handle([Request(body) for body in bodies])
        observer.flush()


def metrics_path(folder):
    (path,) = folder.glob("*.metrics")
    return path


def shift(name, value):
    return [{**row, name: value(row[name])} for row in rows(SAMPLES, 1)]


def test_nothing_alarms_without_a_shift(reference, tmp_path):
    service, observer = counted_service(tmp_path, reference=reference)
    send(service, observer, rows(SAMPLES, 1))
    samples, found = found_psi(metrics_path(tmp_path))
    assert samples == SAMPLES
    assert set(found) == {"score", "price", "age", "user", "item", "tags"}
    # 10 bins and 2,000 samples give 0.005 by chance alone.
    assert max(found.values()) < 0.03


@pytest.mark.parametrize(
    ("name", "value", "also"),
    [
        ("price", lambda price: price + 1, {"score"}),  # the scorer's logit is the price
        ("age", lambda age: 30.0, set()),
        ("age", lambda age: None, set()),
        ("user", lambda user: user + 1_000_000, set()),  # nobody has seen such users
        ("item", lambda item: 499 - item, set()),
        ("tags", lambda tags: [], set()),
    ],
)
def test_the_shifted_feature_alarms_and_no_other(reference, tmp_path, name, value, also):
    service, observer = counted_service(tmp_path, reference=reference)
    send(service, observer, shift(name, value))
    _, found = found_psi(metrics_path(tmp_path))
    assert {feature for feature, value in found.items() if value > ALARM} == {name} | also
    assert max(value for feature, value in found.items() if feature not in {name} | also) < 0.03


def test_one_sample_of_a_request_counts_so_few_users_are_no_drift(reference, tmp_path):
    service, observer = counted_service(tmp_path, reference=reference)
    for start in range(0, SAMPLES, 40):
        batch = rows(SAMPLES, 1)[start : start + 40]
        body = {
            "context": {name: batch[0][name] for name in ("age", "user")},
            "candidates": [{name: row[name] for name in ("price", "item", "tags")} for row in batch],
        }
        service.handle([Request(json.dumps(body).encode())])
        observer.flush()
    samples, found = found_psi(metrics_path(tmp_path))
    assert samples == SAMPLES / 40
    # With all 40 × 50 samples counted, 50 users would give 10/50 by chance; 50 samples give as much in each feature.
    assert found["user"] < 1


def test_ids_of_a_context_count(reference, tmp_path):
    service, observer = counted_service(tmp_path, reference=reference)
    requests = []
    for row in rows(SAMPLES, 1):
        context = {name: row.pop(name) for name in ("age", "user")}
        requests.append(Request(json.dumps({"context": context, "candidates": [row, row]}).encode()))
    for start in range(0, SAMPLES, 16):
        service.handle(requests[start : start + 16])
        observer.flush()
    samples, found = found_psi(metrics_path(tmp_path))
    assert samples == SAMPLES
    assert max(found.values()) < 0.03


def test_a_window_forgets(reference, tmp_path):
    now = [NOW]
    service, observer = counted_service(tmp_path, reference=reference, clock=lambda: now[0])
    path = metrics_path(tmp_path)
    send(service, observer, rows(10, 1))
    now[0] = NOW + 60
    send(service, observer, rows(3, 1))
    assert found_psi(path, now[0])[0] == 13
    assert found_psi(path, now[0], window=60)[0] == 3
    now[0] = NOW + 3600  # the ring is full, and the first block is used again
    send(service, observer, rows(5, 1))
    assert found_psi(path, now[0])[0] == 5
    assert found_psi(path, now[0], window=7200)[0] == 8


def test_scores_of_several_workers_add_up(reference, tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    total = np.zeros(1)
    for folder, seed in ((one, 1), (other, 2)):
        folder.mkdir()
        service, observer = counted_service(folder, reference=reference)
        send(service, observer, rows(20, seed))
        total = total + read_metrics_file(metrics_path(folder)).drift_window(1800, NOW)[0]
    assert total == 40

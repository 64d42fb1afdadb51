"""Generated requests: the declared model takes them, in every format and size."""

from __future__ import annotations

import json

import msgspec
import numpy as np
import pytest
from support.one_output import one_output

from dlrm_factory.config import criteo, demo, tiny
from dlrm_factory.errors import DataError
from dlrm_factory.features import FeatureEncoder
from dlrm_factory.requests.request import Request
from dlrm_factory.requests.service import DLRMService
from dlrm_factory.tools.bench.http.bodies import (
    http_requests,
    random_bodies,
    random_columns,
    read_bodies,
    sample_counts,
)


class ZeroScorer:
    def __init__(self, declaration):
        self.declaration = declaration

    @one_output
    def outputs(self, batch, shared=None):
        return np.zeros(len(batch), dtype=np.float32)


def answers(declaration, bodies):
    service = DLRMService(ZeroScorer(declaration))
    found = service.handle([Request(body.content) for body in bodies])
    return [(answer.status, json.loads(answer.body)) for answer in found]


@pytest.mark.parametrize("body_format", ["columns", "rows"])
@pytest.mark.parametrize("declared", [tiny, demo, lambda: criteo(cap=50), lambda: criteo(cap=50, raw=True)])
def test_the_model_takes_what_is_generated(declared, body_format):
    bodies = random_bodies(declared(), "7", body_format=body_format)[:20]
    for status, answer in answers(declared(), bodies):
        assert status == 200, answer
        assert len(answer["predictions"]) == 7


def test_the_torchserve_format_holds_one_sample():
    bodies = random_bodies(criteo(cap=50), "1", body_format="torchserve")[:20]
    assert all(
        status == 200 and set(answer) == {"score"} for status, answer in answers(criteo(cap=50), bodies)
    )
    with pytest.raises(DataError, match="one sample a request"):
        random_bodies(criteo(cap=50), "2", body_format="torchserve")
    with pytest.raises(DataError, match="other ids"):
        random_bodies(demo(), "1", body_format="torchserve")


def test_weighted_bags_carry_weights():
    base = tiny()
    features = [msgspec.structs.replace(f, weighted=f.name == "item_tags") for f in base.sparse_features]
    declaration = msgspec.structs.replace(base, sparse_features=features)
    columns = random_columns(declaration, 50, np.random.default_rng(0))
    bag = next(each for each in columns["item_tags"] if each)
    assert len(bag["ids"]) == len(bag["weights"])


def test_values_reach_the_whole_table_and_favour_its_start():
    ids = [
        i for i in random_columns(criteo(cap=1000), 20_000, np.random.default_rng(1))["C1"] if i is not None
    ]
    assert min(ids) == 0
    assert max(ids) > 900
    assert np.median(ids) < 150
    assert FeatureEncoder(criteo(cap=1000))


def test_equal_seeds_give_equal_bodies():
    assert random_bodies(tiny(), "3", seed=4) == random_bodies(tiny(), "3", seed=4)
    assert random_bodies(tiny(), "3", seed=4) != random_bodies(tiny(), "3", seed=5)


def test_mlperf_sizes():
    counts = np.array([n for seed in range(50) for n in sample_counts("mlperf", np.random.default_rng(seed))])
    assert counts.min() >= 100
    assert counts.max() <= 700
    assert counts.max() > 600
    assert abs(counts.mean() - 270) < 10


@pytest.mark.parametrize("shape", ["0", "-3", "many", "1e3", "999999", ""])
def test_a_shape_that_is_none(shape):
    with pytest.raises(DataError, match="give a number of samples"):
        sample_counts(shape, np.random.default_rng(0))


def test_requests_of_a_file(tmp_path):
    file = tmp_path / "requests.jsonl"
    lines = [
        '{"instances": [{}, {}]}',
        "",
        '{"inputs": {"a": [1, 2, 3], "b": [1]}}',
        '{"float_features": []}',
    ]
    lines.append('{"context": {}, "candidates": [{}, {}, {}, {}]}')
    file.write_text("\n".join(lines))
    assert [body.samples for body in read_bodies(file)] == [2, 3, 1, 4]
    file.write_text('{"instances": []}\n{"instances": \n')
    with pytest.raises(DataError, match="line 2: is not JSON"):
        read_bodies(file)
    file.write_text("\n")
    with pytest.raises(DataError, match="is empty"):
        read_bodies(file)
    with pytest.raises(DataError, match="cannot be read"):
        read_bodies(tmp_path / "none.jsonl")


def test_http_requests_are_whole():
    bodies = random_bodies(tiny(), "1")[:1]
    (request,) = http_requests(bodies, url="http://host:81/root/", model="a b", authorization="Bearer x")
    head, body = request.split(b"\r\n\r\n", 1)
    assert head.split(b"\r\n")[0] == b"POST /root/predictions/a%20b HTTP/1.1"
    assert {b"Host: host:81", b"Authorization: Bearer x"} <= set(head.split(b"\r\n"))
    assert b"Content-Length: %d" % len(body) in head
    assert body == bodies[0].content

"""Keys written twice: the last counts, whoever reads the body."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlrm_factory.config import tiny
from dlrm_factory.features import FeatureEncoder
from dlrm_factory.requests.decoding import RequestDecoder
from dlrm_factory.requests.formats import RequestReader, decode_body
from dlrm_factory.requests.formats.fast import GatheringReader
from dlrm_factory.requests.request import Request, read_object

READER = RequestReader(encoder=FeatureEncoder(tiny()), max_samples=6)


def read(text: str) -> dict[str, Any]:
    return read_object(text.encode())


OWN = '"id_list_features.lengths": [0, 0, 0], "id_list_features.values": []'
TWICE = [
    '{"inputs": {"price": [1], "price": [7]}}',
    '{"inputs": {"price": [1, 2], "price": [7]}}',
    '{"inputs": {"price": [1], "p\\u0072ice": [7]}}',
    '{"inputs": {"price": [1]}, "inputs": {"price": [7]}}',
    '{"instances": [{"price": 1, "price": 7}]}',
    '{"instances": [{"price": "1", "price": 7}]}',
    '{"instances": [{"price": 7, "item_id": [1, 2], "item_id": [], "user_id": "a:b", "user_id": null}]}',
    '{"instances": [{}], "instances": [{"price": 7}]}',
    '{"instances": [{}, {}], "output": "logit", "instances": [{"price": 7}], "output": "probability"}',
    f'{{"float_features": [1, 2], "float_features": [7, 0], {OWN}}}',
    f'{{"float_features": "x", "float_features": [7, 0], {OWN}}}',
    '{"context": {"price": 1}, "candidates": [{"item_id": 3, "item_id": []}], "context": {"price": 7}}',
]


@pytest.mark.parametrize("text", TWICE)
def test_the_last_counts_in_every_reader(text: str) -> None:
    raw = text.encode()
    reference = decode_body(read(text), READER)
    gathered = GatheringReader(READER).read([(0, raw)])
    alone = RequestDecoder(READER, 10_000).decode(Request(raw))
    for batch in (reference.batch, alone.batch, *(each.batch for each in gathered)):
        assert batch.dense[:, 0].tolist() == [7]
        np.testing.assert_array_equal(batch.lengths, [[0], [0], [0]])
    assert {each.asked.output for each in (reference, alone)} == {"probability"}
    assert not any(sample.asked.output == "logit" for each in gathered for sample in each.samples)


KEY = st.text(alphabet='ab:\\"', max_size=2)
SCALAR = st.one_of(st.none(), st.booleans(), st.integers(), st.text(alphabet=':x\\"u003a', max_size=8))
VALUE = st.recursive(
    SCALAR,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.lists(st.tuples(KEY, inner), max_size=3).map(tuple)
    ),
    max_leaves=8,
)


def written(value: Any) -> str:
    """JSON in which a tuple of pairs is an object, its keys as they come."""
    if isinstance(value, tuple):
        return "{" + ",".join(f"{json.dumps(key)}:{written(inner)}" for key, inner in value) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(written, value)) + "]"
    return json.dumps(value)


@given(st.lists(st.tuples(KEY, VALUE), max_size=3).map(tuple))
def test_objects_are_those_of_pythons_own_decoder(body: Any) -> None:
    text = written(body)
    assert read(text) == json.loads(text)

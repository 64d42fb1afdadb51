from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlrm_factory.errors import RequestError
from dlrm_factory.requests.body import read_body


def read(text: str) -> dict[str, Any]:
    return read_body({"body": text.encode()}, 100_000)


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ('{"output": 1, "output": 1}', "$.output"),
        ('{"inputs": {"price": [1], "price": [1]}}', "$.inputs.price"),
        ('{"inputs": {"price": [1], "p\\u0072ice": [1]}}', "$.inputs.price"),
        ('{"instances": [{}, {"price": 1, "x": 2, "price": 3}]}', "$.instances[1].price"),
        ('{"instances": [{"a": {"ids": [1], "ids": [2]}}]}', "$.instances[0].a.ids"),
        ('{"instances": [{"a": "1:2", "a": 3}]}', "$.instances[0].a"),
        ('{"instances": [{"a": 3, "a": "1:2"}]}', "$.instances[0].a"),
        # The escape stands for the colon of the member that is lost.
        ('{"instances": [{"a": 3, "a": 1, "b": "\\u003a"}]}', "$.instances[0].a"),
        ('{"instances": [{"a": 3, "a": 1, "b": "\\u003A"}]}', "$.instances[0].a"),
        ('{"a:b": 1, "a:b": 2}', '$["a:b"]'),
        ('{"x": ' + "9" * 300 + ', "x": 1e-400}', "$.x"),
        ('{"": 1, "": 2}', '$[""]'),
    ],
)
def test_a_key_twice(text: str, path: str) -> None:
    with pytest.raises(RequestError, match="is written twice in one object; write it once") as caught:
        read(text)
    assert (caught.value.code, caught.value.path) == (400, path)


def test_all_of_them_are_listed() -> None:
    with pytest.raises(RequestError) as caught:
        read('{"a": 1, "a": 2, "b": {"c": 1, "c": 2}}')
    assert [error.path for error in caught.value.others] == ["$.b.c"]


@pytest.mark.parametrize(
    "text",
    [
        '{"instances": [{"user_id": "a:b", "x": ":"}, {"user_id": "::"}]}',
        '{"a": "\\u003a\\u003A:", "b": {"a": 1}}',
        '{"inputs": {"a": [[1], [{"a": 1}, {"a": 2}]], "b": ["a", "a"]}}',
    ],
)
def test_colons_are_not_keys(text: str) -> None:
    assert read(text) == json.loads(text)


def test_nested_as_deep_as_the_decoder_goes() -> None:
    deep = '{"a":' * 400 + "1" + "}" * 400
    assert read(deep) == json.loads(deep)
    with pytest.raises(RequestError, match=r"twice|nested too deeply"):
        read('{"b": 1, "b": ' + deep + "}")


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


def has_twice(value: Any) -> bool:
    if isinstance(value, tuple):
        keys = [key for key, _ in value]
        return len(set(keys)) < len(keys) or any(has_twice(inner) for _, inner in value)
    return isinstance(value, list) and any(map(has_twice, value))


@given(st.lists(st.tuples(KEY, VALUE), max_size=3).map(tuple))
def test_found_if_and_only_if_there(body: Any) -> None:
    text = written(body)
    if not has_twice(body):
        assert read(text) == json.loads(text)
        return
    with pytest.raises(RequestError, match="written twice"):
        read(text)

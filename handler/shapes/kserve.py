"""KServe's Open Inference Protocol, version 2: one tensor a feature.

::

    {"id": "7",
     "inputs": [{"name": "price", "shape": [2], "datatype": "FP32", "data": [9.5, 3.0]},
                {"name": "item_tags", "shape": [3], "datatype": "INT64", "data": [3, 9, 4]},
                {"name": "item_tags.lengths", "shape": [2], "datatype": "INT32", "data": [2, 1]}]}

A tensor of shape [n] or [n, k] holds a bag of one or k ids a sample. Bags of unequal length are flat, with
their lengths in a tensor of the feature's name and ``.lengths``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dlrm_factory.errors import RequestError, near_matches
from dlrm_factory.features import FeatureError, shown
from handler.paths import element, member
from handler.shapes.kserve_tensors import Tensor, read_tensors
from handler.shapes.shape import (
    DecodedRequest,
    Output,
    RequestReader,
    Shape,
    check_samples,
    encode_columns,
)

__all__ = ["KSERVE"]

_INPUTS, _ID, _PARAMETERS, _OUTPUTS = "inputs", "id", "parameters", "outputs"
_KEYS = (_INPUTS, _ID, _PARAMETERS, _OUTPUTS)
_OUTPUT, _BINARY_OUTPUT, _BINARY = "output", "binary_data_output", "binary_data"
_SCORE = "score"


def _decode(body: Mapping[str, Any], output: Output, reader: RequestReader) -> DecodedRequest:
    _check_keys(body)
    answer_id = _answer_id(body.get(_ID))
    output = _output_of(body.get(_PARAMETERS), output)
    _check_outputs(body.get(_OUTPUTS))
    tensors = read_tensors(body[_INPUTS], reader)
    size = _size(tensors)
    check_samples(size, reader, "$.inputs")

    def path_of(error: FeatureError) -> str:
        tensor = tensors.get(error.feature)
        return "$.inputs" if tensor is None else tensor.path_of(error)

    def content(scores: Sequence[float]) -> dict[str, Any]:
        version = {} if reader.model_version is None else {"model_version": reader.model_version}
        scored = {"name": _SCORE, "shape": [len(scores)], "datatype": "FP32", "data": scores}
        return {"model_name": reader.model_name, **version, **answer_id, "outputs": [scored]}

    batch = encode_columns(reader, {name: t.column for name, t in tensors.items()}, size, path_of)
    return DecodedRequest(batch=batch, output=output, content=content, path_of=path_of)


def _check_keys(body: Mapping[str, Any]) -> None:
    for key in body:
        if key not in _KEYS:
            raise RequestError(
                f"unknown key {shown(key)}{near_matches(key[:100], _KEYS)}; beside a list of tensors, known are "
                f"{', '.join(_KEYS)}",
                member("$", key),
            )


def _answer_id(sent: Any) -> dict[str, str]:
    if sent is None:
        return {}
    if not isinstance(sent, str) or any("\ud800" <= character <= "\udfff" for character in sent):
        raise RequestError(f"{shown(sent)} is not a string of Unicode; send one, or leave it out", "$.id")
    return {_ID: sent}


def _output_of(parameters: Any, output: Output) -> Output:
    if parameters is None:
        return output
    if not isinstance(parameters, dict):
        raise RequestError(f"{shown(parameters)} is not an object", "$.parameters")
    for key, value in parameters.items():
        path = member("$.parameters", key)
        if key == _OUTPUT and value in ("probability", "logit"):
            output = value
        elif key == _OUTPUT:
            raise RequestError(f'output is {shown(value)}; send "probability" or "logit"', path)
        elif key == _BINARY_OUTPUT:
            _refuse_binary(value, path)
        else:
            raise RequestError(f"unknown parameter {shown(key)}; known is {_OUTPUT}", path)
    return output


def _check_outputs(outputs: Any) -> None:
    """RequestError for an output that is not ours; there is only one, so the rest is agreed."""
    if outputs is None:
        return
    if not isinstance(outputs, list):
        raise RequestError(f"{shown(outputs)} is not a list; leave it out to get the scores", "$.outputs")
    for i, wanted in enumerate(outputs):
        path = element("$.outputs", i)
        if not isinstance(wanted, dict) or wanted.get("name") != _SCORE:
            raise RequestError(f'the model has one output; ask for {{"name": "{_SCORE}"}}', path)
        parameters = wanted.get(_PARAMETERS)
        if isinstance(parameters, dict):
            _refuse_binary(parameters.get(_BINARY), member(member(path, _PARAMETERS), _BINARY))


def _refuse_binary(value: Any, path: str) -> None:
    if value not in (None, False):
        raise RequestError("binary tensors are not supported; send false, and read data as JSON", path)


def _size(tensors: Mapping[str, Tensor]) -> int:
    """Samples; RequestError unless all tensors agree."""
    first = next(iter(tensors.values()))
    for tensor in tensors.values():
        if len(tensor.column) != len(first.column):
            raise RequestError(
                f"tensor {shown(tensor.name)} has {len(tensor.column)} samples, but tensor "
                f"{shown(first.name)} has {len(first.column)}; send one value a sample in each",
                tensor.shape_path,
            )
    return len(first.column)


KSERVE = Shape(name="KServe v2", keys=(_INPUTS,), decode=_decode)

"""KServe's Open Inference Protocol, version 2: one tensor a feature.

::

    {"id": "7",
     "inputs": [{"name": "price", "shape": [2], "datatype": "FP32", "data": [9.5, 3.0]},
                {"name": "item_tags", "shape": [3], "datatype": "INT64", "data": [3, 9, 4]},
                {"name": "item_tags.lengths", "shape": [2], "datatype": "INT32", "data": [2, 1]}]}

A tensor of shape [n] or [n, k] holds a bag of one or k ids a sample. Bags of unequal length are flat, with
their lengths in a tensor of the feature's name and ``.lengths``. Data may also be binary, see `split_body`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from dlrm_factory.errors import RequestError, near_matches
from dlrm_factory.features import FeatureError, shown
from dlrm_factory.requests.formats.kserve.binary import BINARY_SIZE
from dlrm_factory.requests.formats.kserve.tensors import Tensor, encode_numbers, read_tensors
from dlrm_factory.requests.formats.mistakes import Mistakes, element, member
from dlrm_factory.requests.formats.outputs import Asked, Output, Scores
from dlrm_factory.requests.formats.shape import (
    AnswerForm,
    DecodedRequest,
    Encoding,
    RequestReader,
    Shape,
    check_samples,
    encode_columns,
)
from dlrm_factory.requests.numbers import shortest

__all__ = ["KSERVE"]

_INPUTS, _ID, _PARAMETERS, _OUTPUTS = "inputs", "id", "parameters", "outputs"
# The model is the one that the address names.
_NAMES = ("model_name", "model_version")
_KEYS = (_INPUTS, _ID, _PARAMETERS, _OUTPUTS, *_NAMES)
_OUTPUT, _BINARY_OUTPUT, _BINARY, _CLASSES = "output", "binary_data_output", "binary_data", "classification"
# What stock clients send, and has no bearing here: each request is one of its own, and none goes first.
_WITHOUT_EFFECT = (
    "content_type",
    "headers",
    "priority",
    "sequence_end",
    "sequence_id",
    "sequence_start",
    "timeout",
    "triton_enable_empty_final_response",
)
_NUMBER_BYTES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class KServeForm(AnswerForm):
    """One tensor an output.

    Fields:
        names: of the model, its version, and the request's id.
        binary: output → whether its numbers stand behind the JSON.
    """

    names: Mapping[str, str]
    binary: Mapping[str, bool]

    def content(self, scores: Scores, asked: Asked) -> dict[str, Any]:
        """``{"model_name": "dlrm", "outputs": [{"name": "score", "shape": [2], "datatype": "FP32", …}]}``."""
        return {**self.names, "outputs": [self._tensor(name, scores) for name in asked.names]}

    def parts(self, scores: Scores) -> list[npt.NDArray[np.float32]]:
        """Numbers of the binary tensors."""
        return [scores.array(name) for name, binary in self.binary.items() if binary]

    def _tensor(self, name: str, scores: Scores) -> dict[str, Any]:
        vectors = scores.vectors.get(name)
        shape = [len(scores.numbers[name])] if vectors is None else list(vectors.shape)
        data: dict[str, Any]
        if self.binary[name]:
            data = {_PARAMETERS: {BINARY_SIZE: _NUMBER_BYTES * prod(shape)}}
        else:
            data = {"data": scores.numbers[name] if vectors is None else shortest(vectors.reshape(-1))}
        return {"name": name, "shape": shape, "datatype": "FP32", **data}


def _decode(body: Mapping[str, Any], asked: Asked, reader: RequestReader) -> DecodedRequest:
    _check_keys(body)
    answer_id = _answer_id(body.get(_ID))
    output, binary = _output_of(body.get(_PARAMETERS), asked.output)
    binaries = _outputs_of(body.get(_OUTPUTS), binary, reader)
    tensors = read_tensors(body[_INPUTS], reader)
    size = _size(tensors)
    check_samples(size, reader, "$.inputs")

    def path_of(error: FeatureError) -> str:
        tensor = tensors.get(error.feature)
        return "$.inputs" if tensor is None else tensor.path_of(error)

    batch = encode_numbers(tensors, size, reader)
    if batch is None:
        columns = {name: tensor.column() for name, tensor in tensors.items()}
        batch = encode_columns(reader, columns, size, path_of)
    version = {} if reader.model_version is None else {"model_version": reader.model_version}
    form = KServeForm(names={"model_name": reader.model_name, **version, **answer_id}, binary=binaries)
    encoding = Encoding.BINARY if any(binaries.values()) else Encoding.JSON
    asked = Asked(output, tuple(binaries))
    return DecodedRequest(
        batch=batch, asked=asked, form=form, path_of=path_of, shape="kserve", encoding=encoding
    )


def _check_keys(body: Mapping[str, Any]) -> None:
    for key in body:
        if key not in _KEYS:
            raise RequestError(
                f"unknown key {shown(key)}{near_matches(key[:100], _KEYS)}; beside a list of tensors, known are "
                f"{', '.join(_KEYS)}",
                member("$", key),
            )
    for key in _NAMES:
        if not isinstance(body.get(key), str | None):
            raise RequestError(
                f"{key} is {shown(body[key])}; send a string, or leave it out", member("$", key)
            )


def _answer_id(sent: Any) -> dict[str, str]:
    if sent is None:
        return {}
    if not isinstance(sent, str) or any("\ud800" <= character <= "\udfff" for character in sent):
        raise RequestError(f"{shown(sent)} is not a string of Unicode; send one, or leave it out", "$.id")
    return {_ID: sent}


def _output_of(parameters: Any, output: Output) -> tuple[Output, bool]:
    """The score that ``parameters`` ask for, else ``output``; whether it is to come in binary."""
    binary = False
    if parameters is None:
        return output, binary
    if not isinstance(parameters, dict):
        raise RequestError(f"{shown(parameters)} is not an object", "$.parameters")
    for key, value in parameters.items():
        path = member("$.parameters", key)
        if key == _OUTPUT and value in ("probability", "logit"):
            output = value
        elif key == _OUTPUT:
            raise RequestError(f'output is {shown(value)}; send "probability" or "logit"', path)
        elif key == _BINARY_OUTPUT:
            binary = _flag(value, path)
        elif key not in _WITHOUT_EFFECT:
            known = (_OUTPUT, _BINARY_OUTPUT, *_WITHOUT_EFFECT)
            raise RequestError(
                f"unknown parameter {shown(key)}{near_matches(key[:100], known)}; known are {', '.join(known)}",
                path,
            )
    return output, binary


def _outputs_of(outputs: Any, binary: bool, reader: RequestReader) -> dict[str, bool]:
    """Outputs asked for, in order, and whether each is to come in binary: ``binary`` unless ``outputs`` say.

    RequestError for what is no list of outputs of the model.
    """
    known = reader.outputs
    # Triton's clients send an empty list for all.
    if outputs is None or outputs == []:
        return dict.fromkeys(known.default, binary)
    if not isinstance(outputs, list):
        raise RequestError(f"{shown(outputs)} is not a list; leave it out to get the scores", "$.outputs")
    found: dict[str, bool] = {}
    mistakes = Mistakes()
    for i, wanted in enumerate(outputs):
        path = element("$.outputs", i)
        name = wanted.get("name") if isinstance(wanted, dict) else None
        if not isinstance(name, str) or name not in known.names:
            mistakes.add(RequestError(_unknown_output(wanted, name, known.names), path))
        elif not mistakes.full:
            found[name] = _binary_of_output(wanted.get(_PARAMETERS), member(path, _PARAMETERS), binary)
    mistakes.check()
    return found


def _unknown_output(wanted: Any, name: Any, known: Sequence[str]) -> str:
    if len(known) == 1:
        return f'the model has one output; ask for {{"name": "{known[0]}"}}'
    if not isinstance(wanted, dict):
        return f'{shown(wanted)} is not an output; ask for {{"name": "{known[0]}"}} or another of {", ".join(known)}'
    near = near_matches(name[:100], known) if isinstance(name, str) else ""
    return f"{shown(name)} is not an output of this model{near or '; it has ' + ', '.join(known)}"


def _binary_of_output(parameters: Any, path: str, binary: bool) -> bool:
    if parameters is None:
        return binary
    if not isinstance(parameters, dict):
        raise RequestError(f"{shown(parameters)} is not an object", path)
    for key, value in parameters.items():
        if key == _BINARY:
            binary = _flag(value, member(path, key))
        elif key == _CLASSES or key.startswith("shared_memory_"):
            raise RequestError(
                f"{key} is not offered; leave it out, and read the scores from the answer", member(path, key)
            )
        else:
            raise RequestError(
                f"unknown parameter {shown(key)}{near_matches(key[:100], [_BINARY])}; known is {_BINARY}",
                member(path, key),
            )
    return binary


def _flag(value: Any, path: str) -> bool:
    if value is None:
        return False
    if not isinstance(value, bool):
        raise RequestError(f"{shown(value)} is not true or false", path)
    return value


def _size(tensors: Mapping[str, Tensor]) -> int:
    """Samples; RequestError unless all tensors agree."""
    first = next(iter(tensors.values()))
    for tensor in tensors.values():
        if tensor.size != first.size:
            raise RequestError(
                f"tensor {shown(tensor.name)} has {tensor.size} samples, but tensor "
                f"{shown(first.name)} has {first.size}; send one value a sample in each",
                tensor.shape_path,
            )
    return first.size


KSERVE = Shape(name="KServe v2", keys=(_INPUTS,), decode=_decode)

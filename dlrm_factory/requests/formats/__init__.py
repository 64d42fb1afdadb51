"""The request shapes, and which of them a body is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dlrm_factory.errors import RequestError, near_matches
from dlrm_factory.features import shown
from dlrm_factory.requests.formats.columns.reference import INPUTS
from dlrm_factory.requests.formats.kserve.request import KSERVE
from dlrm_factory.requests.formats.mistakes import member
from dlrm_factory.requests.formats.outputs import Asked, Output
from dlrm_factory.requests.formats.ranking.reference import RANKING
from dlrm_factory.requests.formats.rows.reference import INSTANCES
from dlrm_factory.requests.formats.shape import DecodedRequest, RequestReader, Shape
from dlrm_factory.requests.formats.torchserve.reference import UPSTREAM

__all__ = ["SHAPES", "DecodedRequest", "RequestReader", "Shape", "decode_body"]

SHAPES = (INPUTS, INSTANCES, UPSTREAM, RANKING)

_OUTPUT, _OUTPUTS = "output", "outputs"
# An object of columns is our own shape; a list of tensors is KServe's.
_TENSORS = "inputs"
_SHAPE_OF_KEY = {key: shape for shape in SHAPES for key in shape.keys}


def decode_body(body: Mapping[str, Any], reader: RequestReader) -> DecodedRequest:
    """The request in ``body``. RequestError, or LimitError, with the path of the first mistake."""
    if isinstance(body.get(_TENSORS), list):
        return KSERVE.decode(body, Asked("probability", reader.outputs.default), reader)
    shape = _shape_of(body)
    return shape.decode(body, Asked(_output_of(body), reader.outputs.chosen(body.get(_OUTPUTS))), reader)


def _shape_of(body: Mapping[str, Any]) -> Shape:
    found: dict[str, Shape] = {}
    for key in body:
        shape = _SHAPE_OF_KEY.get(key)
        if shape is None and key not in (_OUTPUT, _OUTPUTS):
            known = [*_SHAPE_OF_KEY, _OUTPUT, _OUTPUTS]
            raise RequestError(
                f"unknown key {shown(key)}{near_matches(key[:100], known)}; known are {', '.join(known)}",
                member("$", key),
            )
        if shape is not None and shape not in found.values():
            found[key] = shape
    if not found:
        raise RequestError(
            "the body holds no samples; send instances, inputs, candidates, or float_features with id lists"
        )
    if len(found) > 1:
        raise RequestError(f"the body mixes {' and '.join(found)}; send one of them")
    return next(iter(found.values()))


def _output_of(body: Mapping[str, Any]) -> Output:
    output = body.get(_OUTPUT, "probability")
    if output == "probability":
        return "probability"
    if output == "logit":
        return "logit"
    raise RequestError(f'output is {shown(output)}; send "probability" or "logit"', member("$", _OUTPUT))

"""One KServe v2 tensor as it was sent, checked."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from math import prod
from typing import Any

from dlrm_factory.errors import RequestError, near_matches
from dlrm_factory.features import shown
from dlrm_factory.requests.formats.kserve.binary import BINARY_SIZE, Numbers, read_binary
from dlrm_factory.requests.formats.mistakes import member

__all__ = ["DENSE_TYPES", "ID_TYPES", "INTEGER_TYPES", "SentTensor", "read_tensor", "shown_shape"]

_FLOATS = ("FP16", "BF16", "FP32", "FP64")
INTEGER_TYPES = ("INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64")
ID_TYPES = (*INTEGER_TYPES, "BYTES")
DENSE_TYPES = (*_FLOATS, *INTEGER_TYPES)
_TYPES = (*_FLOATS, *ID_TYPES)
_KEYS = ("name", "shape", "datatype", "data", "parameters")
_SHARED_MEMORY = "shared_memory_"
# content_type is MLServer's word for what a client made the tensor from.
_PARAMETERS = (BINARY_SIZE, "content_type")


@dataclass(frozen=True, slots=True, kw_only=True)
class SentTensor:
    """A tensor whose data are flat and as many as its shape says.

    Fields:
        path: of the tensor in the body.
        data: a list of what JSON holds, or of a BYTES tensor's strings; an array of a binary tensor's numbers.
        nested: how many data were in each innermost list; 0 for flat data.
    """

    name: str
    path: str
    shape: list[int]
    datatype: str
    data: list[Any] | Numbers
    nested: int


def read_tensor(item: Any, path: str) -> SentTensor:
    """The tensor at ``path``. RequestError with the path of what is wrong."""
    if not isinstance(item, dict):
        raise RequestError(
            f"{shown(item)} is not a tensor; send an object with name, shape, datatype and data", path
        )
    for key in item:
        if key not in _KEYS:
            raise RequestError(
                f"unknown key {shown(key)}{near_matches(key[:100], _KEYS)}; known are {', '.join(_KEYS)}",
                member(path, key),
            )
    name, datatype = item.get("name"), item.get("datatype")
    if not isinstance(name, str):
        raise RequestError(f"name is {shown(name)}; send a feature's name", member(path, "name"))
    if datatype not in _TYPES:
        raise RequestError(
            f"datatype is {shown(datatype)}; send one of {', '.join(_TYPES)}",
            member(path, "datatype"),
        )
    _check_parameters(item.get("parameters"), member(path, "parameters"))
    shape = _shape(item.get("shape"), member(path, "shape"))
    sent, nested = item.get("data"), 0
    data: list[Any] | Numbers
    if isinstance(sent, memoryview):
        data = read_binary(sent, datatype, shape, path)
    elif _announces_bytes(item, sent):
        raise RequestError(
            f"{BINARY_SIZE} is there without the header Inference-Header-Content-Length, which says where the "
            "JSON ends; send both, or data as JSON",
            member(member(path, "parameters"), BINARY_SIZE),
        )
    else:
        empty = sent is None and BINARY_SIZE in (item.get("parameters") or ())
        data, nested = _flat([] if empty else sent, shape, path)
    return SentTensor(name=name, path=path, shape=shape, datatype=datatype, data=data, nested=nested)


def _announces_bytes(item: dict[str, Any], data: Any) -> bool:
    """Tell if bytes should be there; kserve announces 0 of an empty tensor, and sends no header if it has no other."""
    size = (item.get("parameters") or {}).get(BINARY_SIZE)
    return size is not None and not (size == 0 and data is None)


def _check_parameters(parameters: Any, path: str) -> None:
    if parameters is None:
        return
    if not isinstance(parameters, dict):
        raise RequestError(f"{shown(parameters)} is not an object", path)
    for key in parameters:
        if key.startswith(_SHARED_MEMORY):
            raise RequestError("shared memory is not taken; send the data in the request", member(path, key))
        if key not in _PARAMETERS:
            raise RequestError(
                f"unknown parameter {shown(key)}{near_matches(key[:100], _PARAMETERS)}; known are "
                f"{', '.join(_PARAMETERS)}",
                member(path, key),
            )


def _shape(sent: Any, path: str) -> list[int]:
    if (
        isinstance(sent, list)
        and 1 <= len(sent) <= 2
        and all(type(size) is int and 0 <= size < 2**31 for size in sent)
    ):
        return sent
    raise RequestError(f"shape is {shown_shape(sent)}; send [samples] or [samples, ids in each bag]", path)


def shown_shape(sent: Any) -> str:
    """``[2, 3]``, for messages."""
    if isinstance(sent, list) and len(sent) <= 4:
        return "[" + ", ".join(map(shown, sent)) + "]"
    return shown(sent)


def _flat(sent: Any, shape: list[int], path: str) -> tuple[list[Any], int]:
    """The data in one list, and the length of the lists that it came in, 0 if it came in one."""
    data_path = member(path, "data")
    if not isinstance(sent, list):
        raise RequestError(f"data is {shown(sent)}; send a list", data_path)
    nested = 0
    if len(shape) == 2 and sent and all(isinstance(row, list) for row in sent):
        if any(len(row) != shape[1] for row in sent):
            raise RequestError(
                f"the lists in data differ from shape {shown_shape(shape)} in length", data_path
            )
        sent, nested = list(chain.from_iterable(sent)), shape[1]
    if any(isinstance(value, (list, dict)) for value in sent):
        raise RequestError(f"data holds lists or objects deeper than shape {shown_shape(shape)}", data_path)
    if len(sent) != prod(shape):
        raise RequestError(
            f"data holds {len(sent)} values, but shape {shown_shape(shape)} asks for {prod(shape)}", data_path
        )
    return sent, nested

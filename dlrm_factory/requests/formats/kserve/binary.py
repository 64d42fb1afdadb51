"""KServe v2's binary tensors: a JSON object, and behind it the data of its tensors, one after the other.

::

    Inference-Header-Content-Length: 127
    {"inputs": [{"name": "price", "shape": [2], "datatype": "FP32", "parameters": {"binary_data_size": 8}}, …]}
    00001841 00004040 …

Numbers are little-endian. A BYTES element is its length, a little-endian uint32, and then its bytes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from dlrm_factory.errors import RequestError
from dlrm_factory.features import shown
from dlrm_factory.requests.formats.mistakes import element, member

__all__ = ["BINARY_SIZE", "JSON_LENGTH", "cut_tensors", "read_binary", "split_body"]

JSON_LENGTH = "inference-header-content-length"
BINARY_SIZE = "binary_data_size"

Numbers = npt.NDArray[Any]

_HEADER = "Inference-Header-Content-Length"
_DIGITS = re.compile(r"[0-9]{1,18}", re.ASCII)
_PREFIX = 4  # bytes of a BYTES element's length
_TYPES: dict[str, np.dtype[Any]] = {
    "FP16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    "INT8": np.dtype("<i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "UINT8": np.dtype("<u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
}


def split_body(raw: bytes, length: str) -> tuple[bytes, memoryview]:
    """The JSON in ``raw``, whose ``length`` the header says, and what follows. RequestError if it is no such length."""
    if not _DIGITS.fullmatch(length.strip()) or int(length) > len(raw):
        raise RequestError(
            f"the header {_HEADER} is {shown(length[:100])}, but the body has {len(raw)} bytes; send the number "
            "of bytes of the JSON at its start"
        )
    size = int(length)
    return raw[:size], memoryview(raw)[size:]


def cut_tensors(body: Mapping[str, Any], rest: memoryview) -> None:
    """Put each tensor's bytes of ``rest`` under its ``data``, as a memoryview. RequestError unless they add up.

    Args:
        body: a request's JSON object, whose ``inputs`` are changed.
    """
    inputs = body.get("inputs")
    if not isinstance(inputs, list):
        if len(rest):
            raise RequestError(
                f"{len(rest)} bytes follow the JSON, which holds no list of tensors; send them with KServe v2's inputs"
            )
        return
    at = 0
    for i, item in enumerate(inputs):
        parameters = item.get("parameters") if isinstance(item, dict) else None
        if not isinstance(parameters, dict) or BINARY_SIZE not in parameters:
            continue
        path, size = element("$.inputs", i), parameters[BINARY_SIZE]
        size_path = member(member(path, "parameters"), BINARY_SIZE)
        if type(size) is not int or size < 0:
            raise RequestError(
                f"{BINARY_SIZE} is {shown(size)}; send the number of bytes of the tensor", size_path
            )
        if size > len(rest) - at:
            raise RequestError(
                f"{BINARY_SIZE} is {shown(size)}, but {len(rest) - at} of the {len(rest)} bytes behind the JSON "
                "are left",
                size_path,
            )
        if item.get("data") is not None:
            raise RequestError(f"data and {BINARY_SIZE} are both there; send one", member(path, "data"))
        item["data"] = rest[at : at + size]
        at += size
    if at != len(rest):
        raise RequestError(
            f"{len(rest)} bytes follow the JSON, but the {BINARY_SIZE} of all tensors add up to {at}; they must agree"
        )


def read_binary(data: memoryview, datatype: str, shape: list[int], path: str) -> Numbers | list[str]:
    """The values of the tensor at ``path``; RequestError unless they are as many as ``shape`` says.

    An array that shares the bytes of ``data`` (BF16 is copied, to float32), or strings for BYTES.

    Args:
        datatype: any of KServe's, except BOOL.
    """
    if datatype == "BYTES":
        return _texts(data, prod(shape), path)
    kind = _TYPES[datatype]
    if len(data) != prod(shape) * kind.itemsize:
        raise RequestError(
            f"{BINARY_SIZE} is {len(data)}, but shape [{', '.join(map(str, shape))}] of {datatype} takes "
            f"{prod(shape) * kind.itemsize} bytes",
            member(member(path, "parameters"), BINARY_SIZE),
        )
    if not len(data):
        return np.empty(0, dtype=kind)
    values = np.frombuffer(data, dtype=kind)
    if datatype == "BF16":  # the upper half of a float32
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values


def _texts(data: memoryview, count: int, path: str) -> list[str]:
    data_path = member(path, "data")
    texts: list[str] = []
    at, end = 0, len(data)
    while at < end and len(texts) < count:
        start = at + _PREFIX
        size = int.from_bytes(data[at:start], "little")
        if start > end or size > end - start:
            said = f"its length is {size}, but {end - start} bytes" if start <= end else f"{end - at} bytes"
            raise RequestError(
                f"element {len(texts)} of BYTES is cut short: {said} are left; send its length as a little-endian "
                "uint32, then its bytes",
                element(data_path, len(texts)),
            )
        at = start + size
        try:
            texts.append(str(data[start:at], "utf-8"))
        except UnicodeDecodeError as error:
            raise RequestError(
                f"element {len(texts)} of BYTES is not UTF-8 ({error.reason}); ids are integers or strings",
                element(data_path, len(texts)),
            ) from None
    if len(texts) != count or at != end:
        raise RequestError(
            f"data holds {len(texts) if at == end else f'more than {count}'} elements, but shape asks for {count}",
            data_path,
        )
    return texts

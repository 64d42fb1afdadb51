"""The `.metadata` of a torch.distributed.checkpoint folder, which is a pickle, read so that nothing in it can run.

Opcodes of the pickle are looked through first, and every class that it names becomes an inert record, or is refused.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch

from dlrm_factory.errors import WeightsError
from dlrm_factory.tools.importing.torch_file import Record

__all__ = ["SavedBytes", "SavedTensorStorage", "read_metadata"]

_MAX_BYTES = 256 << 20
_MAX_MEMO = 50_000_000


class SavedTensorStorage(Record):
    """Size, dtype and chunks of a tensor."""


class SavedBytes(Record):
    """A value that is no tensor. That data is a pickle of its own, and not read."""


_DCP = "torch.distributed.checkpoint"
_DTYPES = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
_ALLOWED: dict[tuple[str, str], Any] = {
    (f"{_DCP}.metadata", "Metadata"): Record,
    (f"{_DCP}.metadata", "MetadataIndex"): Record,
    (f"{_DCP}.metadata", "StorageMeta"): Record,
    (f"{_DCP}.metadata", "TensorProperties"): Record,
    (f"{_DCP}.metadata", "_MEM_FORMAT_ENCODING"): Record,
    (f"{_DCP}.metadata", "ChunkStorageMetadata"): Record,
    (f"{_DCP}.metadata", "TensorStorageMetadata"): SavedTensorStorage,
    (f"{_DCP}.metadata", "BytesStorageMetadata"): SavedBytes,
    (f"{_DCP}.filesystem", "_StorageInfo"): Record,
    ("torch.serialization", "_get_layout"): Record,
    ("torch", "Size"): torch.Size,
    ("pathlib", "PosixPath"): Record,
    ("pathlib", "PurePosixPath"): Record,
    ("pathlib._local", "PosixPath"): Record,
    ("collections", "OrderedDict"): OrderedDict,
    **{("torch", name): getattr(torch, name) for name in _DTYPES},
}
# What a pickle of such records is made of. Left out: what names objects by ids, or takes memory for the asking.
_OPCODES = frozenset(
    """
    PROTO FRAME STOP MARK MEMOIZE BINPUT LONG_BINPUT BINGET LONG_BINGET POP POP_MARK NONE NEWTRUE NEWFALSE
    BININT BININT1 BININT2 LONG1 LONG4 BINFLOAT SHORT_BINUNICODE BINUNICODE SHORT_BINBYTES BINBYTES
    EMPTY_DICT EMPTY_LIST EMPTY_TUPLE EMPTY_SET ADDITEMS FROZENSET TUPLE TUPLE1 TUPLE2 TUPLE3
    APPEND APPENDS SETITEM SETITEMS GLOBAL STACK_GLOBAL NEWOBJ REDUCE BUILD
    """.split()  # noqa: SIM905 - a list of quoted words would be 40 lines
)


class _Restricted(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise _NotAllowed(f"{module}.{name}")
        return _ALLOWED[module, name]


class _NotAllowed(Exception):
    """The pickle names something else than checkpoint metadata."""


def read_metadata(path: Path) -> Record:
    """The `Metadata` in the file ``path``, as a record. WeightsError if it is damaged or names anything else."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise WeightsError(f"{path}: is larger than {_MAX_BYTES >> 20} MiB, which no such metadata is")
        data = path.read_bytes()
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read: {error}") from None
    try:
        _check_opcodes(data)
        found = _Restricted(io.BytesIO(data)).load()
    except _NotAllowed as error:
        raise WeightsError(
            f"{path}: names {error}, which could run when it is loaded, so it is not; torch.distributed.checkpoint "
            "writes no such thing: do not use this folder"
        ) from None
    except Exception as error:  # a damaged pickle raises anything
        raise WeightsError(f"{path}: is damaged ({type(error).__name__}: {str(error)[:160]})") from None
    if type(found) is not Record:
        raise WeightsError(f"{path}: does not hold a checkpoint's metadata")
    return found


def _check_opcodes(data: bytes) -> None:
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name not in _OPCODES:
            raise ValueError(f"opcode {opcode.name}")
        # The memo is an array as long as the largest number in it.
        if opcode.name == "LONG_BINPUT" and (not isinstance(argument, int) or argument > _MAX_MEMO):
            raise ValueError("a memo too large")

"""Table dtypes: how a row lies in memory, as fbgemm's inference lookup reads it.

A quantised row is ``[scale fp16 | bias fp16 | values]``: 4 bytes, then embedding_dim bytes (int8) or
embedding_dim / 2 bytes (int4, two values a byte, low nibble first). fp16 and fp32 rows are the bare values.
"""

from __future__ import annotations

import torch
from fbgemm_gpu.split_embedding_configs import SparseType
from torchrec.modules.embedding_configs import DataType

from dlrm_factory.config.declaration import TableDtype

__all__ = [
    "DATA_TYPES",
    "SPARSE_TYPES",
    "column_bytes",
    "decode_rows",
    "encode_rows",
    "row_bytes",
    "scale_bias_bytes",
]

DATA_TYPES: dict[TableDtype, DataType] = {
    "fp32": DataType.FP32,
    "fp16": DataType.FP16,
    "int8": DataType.INT8,
    "int4": DataType.INT4,
}
SPARSE_TYPES: dict[TableDtype, SparseType] = {
    "fp32": SparseType.FP32,
    "fp16": SparseType.FP16,
    "int8": SparseType.INT8,
    "int4": SparseType.INT4,
}
_BITS: dict[TableDtype, int] = {"fp32": 32, "fp16": 16, "int8": 8, "int4": 4}


def scale_bias_bytes(dtype: TableDtype) -> int:
    """Bytes of scale and bias at the head of a row."""
    return 4 if dtype in ("int8", "int4") else 0


def column_bytes(dtype: TableDtype, columns: int) -> int:
    """Bytes of ``columns`` values of a row, without scale and bias. ``columns`` is a multiple of 4."""
    return columns * _BITS[dtype] // 8


def row_bytes(dtype: TableDtype, columns: int) -> int:
    """Bytes of a row of ``columns`` values, unpadded."""
    return scale_bias_bytes(dtype) + column_bytes(dtype, columns)


def encode_rows(rows: torch.Tensor, dtype: TableDtype) -> torch.Tensor:
    """float32 [n, D] → uint8 [n, row_bytes(dtype, D)]. Each int8 or int4 row has its own scale and bias."""
    rows = rows.float().contiguous()
    if dtype == "fp32":
        return rows.view(torch.uint8)
    if dtype == "fp16":
        return rows.half().view(torch.uint8)
    # fbgemm puts scale and bias last here, and its lookup wants them first.
    packed = torch.ops.fbgemm.FloatOrHalfToFusedNBitRowwiseQuantizedSBHalf(rows, _BITS[dtype])
    return torch.cat([packed[:, -4:], packed[:, :-4]], dim=1)


def decode_rows(encoded: torch.Tensor, dtype: TableDtype) -> torch.Tensor:
    """uint8 [n, row_bytes(dtype, D)] → float32 [n, D], the values the lookup sums."""
    encoded = encoded.contiguous()
    if dtype == "fp32":
        return encoded.view(torch.float32)
    if dtype == "fp16":
        return encoded.view(torch.float16).float()
    packed = torch.cat([encoded[:, 4:], encoded[:, :4]], dim=1)
    return torch.ops.fbgemm.FusedNBitRowwiseQuantizedSBHalfToFloat(packed, _BITS[dtype])

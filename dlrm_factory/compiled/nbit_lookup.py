"""fbgemm's inference lookup over encoded tables, without the module around it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from fbgemm_gpu.split_embedding_configs import SparseType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation, PoolingMode

from dlrm_factory.config.declaration import TableDtype
from dlrm_factory.model.dtypes import SPARSE_TYPES

__all__ = ["NBitLookup"]

_OUTPUT = {torch.float32: SparseType.FP32.as_int(), torch.bfloat16: SparseType.BF16.as_int()}


class NBitLookup:
    """Sums rows of tables that lie in one buffer, in one call, on the buffer's device."""

    def __init__(
        self,
        memory: torch.Tensor,
        *,
        places: Sequence[int],
        dtypes: Sequence[TableDtype],
        columns: Sequence[int],
        row_alignment: int = 1,
    ) -> None:
        """T tables, one entry each; a table may come several times.

        Args:
            memory: uint8, the encoded rows.
            places: bytes before a table's first row.
            dtypes: of the rows.
            columns: values of a row.
            row_alignment: bytes that a row is a multiple of.
        """
        device = memory.device
        location = EmbeddingLocation.HOST if device.type == "cpu" else EmbeddingLocation.DEVICE
        widest = {
            dtype: max((c for c, each in zip(columns, dtypes, strict=True) if each == dtype), default=0)
            for dtype in SPARSE_TYPES
        }
        ends = [0]
        for each in columns:
            ends.append(ends[-1] + each)
        self.columns = ends[-1]
        # By position, in the order that fbgemm declares: names take a third of a small batch's lookup.
        self._before = (
            memory,  # dev_weights
            torch.empty(0, dtype=torch.uint8, device=device),  # uvm_weights
            torch.full((len(places),), location.value, dtype=torch.int32, device=device),
            torch.tensor(list(places), dtype=torch.int64, device=device),  # weights_offsets
            torch.tensor([SPARSE_TYPES[d].as_int() for d in dtypes], dtype=torch.uint8, device=device),
            torch.tensor(ends, dtype=torch.int32, device=device),  # D_offsets
            self.columns,  # total_D
            0,  # max_int2_D
            *(widest[dtype] for dtype in ("int4", "int8", "fp16", "fp32")),
        )
        # One call serves sum and mean: means are sums divided afterwards.
        self._pooling = int(PoolingMode.SUM)
        self._after = (
            torch.empty(0, 0, dtype=torch.uint8, device=device),  # lxu_cache_weights
            torch.empty(0, dtype=torch.int32, device=device),  # lxu_cache_locations
            row_alignment,
        )
        self._look_up = torch.ops.fbgemm.int_nbit_split_embedding_codegen_lookup_function.default

    def __call__(
        self,
        indices: torch.Tensor,
        offsets: torch.Tensor,
        weights: torch.Tensor | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> torch.Tensor:
        """Pooled vectors, [B, columns] in ``dtype`` (float32 or bfloat16). Sums are float32 and rounded once.

        Args:
            indices: int32 or int64 [n], rows of the tables, bag after bag, all bags of the first table first.
            offsets: of the same dtype, [T * B + 1], a bag's first index; on CUDA int32.
            weights: float32 [n], what each row is multiplied by.
        """
        pooled: torch.Tensor = self._look_up(
            *self._before, indices, offsets, self._pooling, weights, _OUTPUT[dtype], *self._after
        )
        return pooled

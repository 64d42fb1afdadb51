"""A rank's part of a table, as torch.distributed.checkpoint saves and loads it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    MetadataIndex,
    TensorProperties,
)
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType

__all__ = ["Shards"]


class Shards(torch.Tensor):
    """A tensor that lies in parts on several ranks.

    Not to be computed with. It follows the protocol of `torch.distributed._checkpointable`, so that what one number of
    ranks saved is read by another: a part is put together from the saved parts that overlap it.

    Fields:
        part: this rank's part.
        offsets: where it lies in the whole.
    """

    part: torch.Tensor
    offsets: torch.Size

    @staticmethod
    def of(size: Sequence[int], offsets: Sequence[int], part: torch.Tensor) -> Shards:
        """``part`` of a tensor of ``size``."""
        shards = torch.Tensor._make_wrapper_subclass(Shards, torch.Size(size), dtype=part.dtype)
        shards.part, shards.offsets = part, torch.Size(offsets)
        return shards

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise NotImplementedError(f"{function} of a tensor in parts")

    def __create_write_items__(self, name: str, shards: Shards) -> list[WriteItem]:
        return [
            WriteItem(
                index=MetadataIndex(name, self.offsets),
                type=WriteItemType.SHARD,
                tensor_data=TensorWriteData(
                    chunk=self._chunk(),
                    properties=TensorProperties.create_from_tensor(self.part),
                    size=self.shape,
                ),
            )
        ]

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        return [self._chunk()]

    def __get_tensor_shard__(self, index: MetadataIndex) -> torch.Tensor:
        return self.part

    def _chunk(self) -> ChunkStorageMetadata:
        return ChunkStorageMetadata(offsets=self.offsets, sizes=self.part.shape)

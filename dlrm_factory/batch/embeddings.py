"""Vectors of samples as the dense net takes them: looked up, and shared by the samples of a ranking."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

__all__ = ["Embeddings", "concatenate_embeddings", "share_embeddings", "split_embeddings"]


@dataclass(frozen=True, slots=True)
class Embeddings:
    """Looked-up vectors of B samples, features in declared order.

    Fields:
        pooled: [B, W], the pooled features' vectors one after the other; float32 or bfloat16.
        sequences: of each sequence feature [B, T, D], zeros past its end. T is at least 1, and the same for features
            with the same max_length.
        lengths: of each sequence feature int64 [B].
        shared: [B, …] each, what a net's shared part has made of the vectors, once it has.
    """

    pooled: torch.Tensor
    sequences: Sequence[torch.Tensor] = ()
    lengths: Sequence[torch.Tensor] = ()
    shared: Sequence[torch.Tensor] = ()

    @property
    def all(self) -> list[torch.Tensor]:
        """Every tensor, each with B rows: pooled, sequences, lengths, shared."""
        return [self.pooled, *self.sequences, *self.lengths, *self.shared]

    def of(self, tensors: Sequence[torch.Tensor]) -> Embeddings:
        """`all` of other samples, as these."""
        end = 1 + len(self.sequences)
        after = end + len(self.lengths)
        return Embeddings(tensors[0], tensors[1:end], tensors[end:after], tensors[after:])


def concatenate_embeddings(parts: Sequence[Embeddings]) -> Embeddings:
    """Vectors of the samples of all ``parts``, in order; sequences as long as the longest part's. At least one part."""
    if len(parts) == 1:
        return parts[0]
    sequences = []
    for each in zip(*(part.sequences for part in parts), strict=True):
        steps = max(vectors.shape[1] for vectors in each)
        sequences.append(torch.cat([functional.pad(v, (0, 0, 0, steps - v.shape[1])) for v in each]))
    lengths = [torch.cat(each) for each in zip(*(part.lengths for part in parts), strict=True)]
    return Embeddings(torch.cat([part.pooled for part in parts]), sequences, lengths)


def share_embeddings(found: Embeddings, spans: Sequence[Sequence[int]]) -> Embeddings:
    """The vectors of `with_contexts` → those of the samples.

    An empty bag pools to zeros, so a sum puts a context's vectors into its samples; an empty sequence is replaced.

    Args:
        found: of B samples and R contexts; its pooled vectors are written to.
        spans: R pairs (start, stop): the samples that the context belongs to.
    """
    pooled = found.pooled
    size = pooled.shape[0] - len(spans)
    for context, (start, stop) in enumerate(spans):
        pooled[start:stop] += pooled[size + context]
    if not found.sequences:
        return Embeddings(pooled[:size])
    sequences, lengths = [], []
    for vectors, counts in zip(found.sequences, found.lengths, strict=True):
        source = torch.arange(size)
        for context, (start, stop) in enumerate(spans):
            if counts[size + context]:
                source[start:stop] = size + context
        source = source.to(vectors.device)
        sequences.append(vectors.index_select(0, source))
        lengths.append(counts.index_select(0, source))
    return Embeddings(pooled[:size], sequences, lengths)


def split_embeddings(found: Embeddings, size: int) -> Iterator[Embeddings]:
    """``found`` in pieces of ``size`` samples, in order; the last may be smaller."""
    for start in range(0, found.pooled.shape[0], size):
        yield found.of([tensor[start : start + size] for tensor in found.all])

"""A handler as TorchServe's own DLRM example writes it, on CPU: dicts in, tensors from lists, dicts out.

Put right where that example cannot be compared: it takes whole batches, keeps ids as integers, and lays the values
out feature by feature. The model is the eager int8 DistributedModelParallel one.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dlrm_factory.factory import DLRMFactory
from dlrm_factory.weights.sealed import SealedWeights


class StockHandler:
    """initialize → preprocess → inference → postprocess."""

    def initialize(self, context: Any) -> None:
        logging.getLogger("MethodLogger-NullHandler").setLevel(logging.WARNING)
        torch.set_num_threads(1)
        sealed = SealedWeights(Path(context.system_properties["model_dir"]))
        self.keys = sealed.declaration.sparse_names
        self.model = DLRMFactory(sealed.declaration).build(weights=sealed).model

    def handle(self, data: list[dict[str, Any]], context: Any) -> list[dict[str, float]]:
        return self.postprocess(self.inference(*self.preprocess(data)))

    def preprocess(self, data: list[dict[str, Any]]) -> tuple[torch.Tensor, KeyedJaggedTensor]:
        """One sample a request: dense float32 [B, n], and the KeyedJaggedTensor."""
        requests: list[Any] = [row.get("data") or row.get("body") for row in data]
        dense = torch.FloatTensor([request["float_features"] for request in requests])
        lengths = [request["id_list_features.lengths"] for request in requests]
        bags = [
            _split(request["id_list_features.values"], each)
            for request, each in zip(requests, lengths, strict=True)
        ]
        values = [number for feature in zip(*bags, strict=True) for bag in feature for number in bag]
        sparse = KeyedJaggedTensor(
            keys=self.keys,
            lengths=torch.LongTensor(lengths).t().reshape(-1),
            values=torch.LongTensor(values),
        )
        return dense, sparse

    def inference(self, dense: torch.Tensor, sparse: KeyedJaggedTensor) -> torch.Tensor:
        with torch.no_grad():
            return self.model(dense, sparse)

    def postprocess(self, logits: torch.Tensor) -> list[dict[str, float]]:
        return [{"score": score} for score in torch.sigmoid(logits).reshape(-1).tolist()]


def _split(values: list[int], lengths: list[int]) -> list[list[int]]:
    """The bags of one sample."""
    bags, start = [], 0
    for length in lengths:
        bags.append(values[start : start + length])
        start += length
    return bags

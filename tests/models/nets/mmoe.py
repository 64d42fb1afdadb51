"""MMoE (Ma et al. 2018): experts that click and purchase share, each with a gate of its own."""

import torch
from torch import nn


class MMoE(nn.Module):
    def __init__(self, inputs, experts: int = 3, hidden: int = 16) -> None:
        super().__init__()
        self.names = list(inputs.outputs)
        width = len(inputs.dense) + sum(inputs.pooled.values())
        self.experts = nn.ModuleList(nn.Linear(width, hidden) for _ in range(experts))
        self.gates = nn.ModuleList(nn.Linear(width, experts) for _ in self.names)
        self.heads = nn.ModuleList(nn.Linear(hidden, 1) for _ in self.names)

    def forward(self, dense, pooled):
        features = torch.cat((dense, pooled.flatten(1)), dim=1)
        experts = torch.stack([expert(features).relu() for expert in self.experts], dim=1)
        found = {}
        for name, gate, head in zip(self.names, self.gates, self.heads, strict=True):
            mixed = (gate(features).softmax(dim=1).unsqueeze(2) * experts).sum(dim=1)
            found[name] = head(mixed).squeeze(1)
        return found

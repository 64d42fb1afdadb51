"""DCN-v2 (Wang et al. 2021): crosses of full rank beside a deep part."""

import torch
from torch import nn


class DCNv2(nn.Module):
    def __init__(self, inputs, layers: int = 3, hidden: int = 32) -> None:
        super().__init__()
        width = len(inputs.dense) + sum(inputs.pooled.values())
        self.crosses = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
        self.deep = nn.Sequential(nn.Linear(width, hidden), nn.ReLU())
        self.head = nn.Linear(width + hidden, 1)

    def forward(self, dense, pooled_by_name):
        first = torch.cat((dense, *pooled_by_name.values()), dim=1)
        crossed = first
        for cross in self.crosses:
            crossed = first * cross(crossed) + crossed
        return self.head(torch.cat((crossed, self.deep(first)), dim=1))

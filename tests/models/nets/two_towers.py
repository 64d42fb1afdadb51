"""Two towers (Covington et al. 2016; Yi et al. 2019): a user's and an item's vector, and their dot product."""

import torch
from torch import nn


class TwoTowers(nn.Module):
    def __init__(self, inputs, user_features: list[str], item_features: list[str]) -> None:
        super().__init__()
        self.sides = {"user": user_features, "item": item_features}
        self.towers = nn.ModuleDict(
            {
                side: nn.Linear(sum(inputs.pooled[name] for name in names), inputs.outputs[side])
                for side, names in self.sides.items()
            }
        )
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, pooled_by_name):
        found = {
            side: nn.functional.normalize(
                self.towers[side](torch.cat([pooled_by_name[name] for name in names], dim=1)), dim=1
            )
            for side, names in self.sides.items()
        }
        found["click"] = (found["user"] * found["item"]).sum(dim=1) * 5 + self.bias
        return found

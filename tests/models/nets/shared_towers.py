"""Two towers whose user tower is one ranking's: computed once for all its candidates."""

import torch
from torch import nn


class SharedTowers(nn.Module):
    shared_features = ("age", "user", "tags", "history")

    def __init__(self, inputs, width: int = 16, size: int = 6) -> None:
        super().__init__()
        self.user = nn.Sequential(
            nn.Linear(1 + inputs.pooled["user"] + inputs.pooled["tags"] + inputs.sequences["history"], width),
            nn.ReLU(),
            nn.Linear(width, size),
        )
        self.item = nn.Linear(1 + inputs.pooled["item"], size)
        self.bias = nn.Parameter(torch.zeros(1))

    def shared(self, dense, pooled_by_name, sequences, lengths):
        mean = sequences["history"].sum(dim=1) / lengths["history"].clamp(min=1).unsqueeze(1)
        user = self.user(torch.cat((dense, *pooled_by_name.values(), mean), dim=1))
        return {"user": user, "length": user.norm(dim=1)}

    def forward(self, dense, pooled_by_name, shared):
        item = self.item(torch.cat((dense[:, 1:], pooled_by_name["item"]), dim=1))
        click = (shared["user"] * item).sum(dim=1) / (1 + shared["length"]) + self.bias
        return {"click": click, "user": shared["user"]}

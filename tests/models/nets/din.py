"""DIN (Zhou et al. 2018): a history weighted by what it has in common with the target."""

import torch
from torch import nn

from .layers import tower


class DIN(nn.Module):
    def __init__(self, inputs, hidden: int = 16) -> None:
        super().__init__()
        dim = inputs.sequences["history"]
        self.attention = tower(4 * dim, hidden)
        self.head = tower(2 * dim + sum(inputs.pooled.values()) + len(inputs.dense), hidden)

    def forward(self, dense, pooled_by_name, sequences, lengths):
        target, history = sequences["item"], sequences["history"]
        aside = target.expand_as(history)
        pairs = torch.cat((aside, history, aside - history, aside * history), dim=2)
        steps = torch.arange(history.shape[1], device=history.device)
        inside = (steps < lengths["history"].unsqueeze(1)).unsqueeze(2)
        interest = (self.attention(pairs) * inside * history).sum(dim=1)
        features = torch.cat((dense, interest, target.squeeze(1), *pooled_by_name.values()), dim=1)
        return self.head(features).squeeze(1)

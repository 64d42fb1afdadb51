"""A net that looks at values to decide what to compute, which nothing can export."""

from torch import nn


class Branching(nn.Module):
    def __init__(self, inputs) -> None:
        super().__init__()
        self.head = nn.Linear(len(inputs.dense), 1)

    def forward(self, dense):
        logits = self.head(dense)
        if logits.abs().max() > 100:
            logits = logits.clamp(-100, 100)
        return logits

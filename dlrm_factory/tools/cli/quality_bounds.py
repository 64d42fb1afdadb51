"""Options that bound what serving may lose, the same for `dlrm archive` and `dlrm verify`."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["MaxAucLoss", "MaxDifference", "MaxDrift", "MinOverlap"]

MaxAucLoss = Annotated[
    float, typer.Option(min=0, help="The most AUC that serving may lose against the trained model.")
]
MaxDrift = Annotated[
    float,
    typer.Option(min=0, help="The most that golden probabilities may be from trained ones, on average."),
]
MaxDifference = Annotated[
    float, typer.Option(min=0, help="The most that a compiled probability may be from the eager one.")
]
MinOverlap = Annotated[
    float,
    typer.Option(min=0, max=1, help="The least share of the eager top 10 that the compiled one must have."),
]

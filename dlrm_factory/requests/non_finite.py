"""Whose fault a score is that is not a finite number."""

from __future__ import annotations

import numpy as np

from dlrm_factory.config import DLRMDeclaration
from dlrm_factory.errors import RequestError
from dlrm_factory.features import FeatureError
from dlrm_factory.requests.formats import DecodedRequest

__all__ = ["too_large"]

# No dense feature of this size is a measurement; layers of float32 overflow somewhere above it.
_SUSPICIOUS = 1e6


def too_large(request: DecodedRequest, sample: int, declaration: DLRMDeclaration) -> RequestError | None:
    """The client's mistake, if ``sample`` has a dense feature that overflows the model, else None."""
    row = request.batch.dense[sample]
    feature = int(np.abs(row).argmax())
    if abs(row[feature]) < _SUSPICIOUS:
        return None
    name = declaration.dense_names[feature]
    message = (
        f'dense feature "{name}": {row[feature]:.8g} is so large that the score is not a finite number; '
        "send values of the size that the model was trained on"
    )
    return RequestError(message, request.path_of(FeatureError(message, feature=name, sample=sample)))

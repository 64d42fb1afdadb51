"""Depth of the tests that draw their cases: ``dev`` at the desk, ``ci`` by default, ``deep`` when there is time.

`scripts/test` sets it by ``--quick`` and ``--deep``.
"""

from __future__ import annotations

import os

__all__ = ["DEPTH", "DEPTHS", "examples"]

DEPTHS = {"dev": 0.1, "ci": 1.0, "deep": 10.0}
DEPTH = os.environ.get("DLRM_TEST_DEPTH", "ci")


def examples(usual: int) -> int:
    """Number of cases to draw where ``ci`` draws ``usual``: a tenth in ``dev``, but 5 at least; tenfold in ``deep``."""
    return max(min(5, usual), round(usual * DEPTHS[DEPTH]))

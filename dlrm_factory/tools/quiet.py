"""Silence of libraries in processes of the command line, so that its own messages are read."""

from __future__ import annotations

import logging
import warnings

__all__ = ["quiet_libraries"]


def quiet_libraries() -> None:
    """Errors alone from libraries: TorchRec's planner warns through the root logger on every plan.

    And no word of what torch and TorchRec are going to rename.
    """
    logging.basicConfig(level=logging.ERROR, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("dlrm_factory").setLevel(logging.WARNING)
    for name in ("torchrec", "torch.fx", "fbgemm_gpu"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch(rec)?\.")

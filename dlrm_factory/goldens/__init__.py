"""Golden requests: real or generated ones with the scores that this archive must give for them.

A worker replays them before it reports ready. Whatever could make it score otherwise than the model that was sealed
(damaged weights, other packages, another CPU's arithmetic gone wrong) shows there, and not in a client's answer.
"""

from dlrm_factory.goldens.file import Golden, Goldens, read_goldens, write_goldens
from dlrm_factory.goldens.making import add_goldens, golden_batch

__all__ = ["Golden", "Goldens", "add_goldens", "golden_batch", "read_goldens", "write_goldens"]

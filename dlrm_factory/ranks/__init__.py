"""One model over several processes: rank 0 leads, scatters slices of a batch, and gathers logits; the others follow.

::

    leader                            every rank                          leader
    FeatureBatch → slices → scatter → lookup of its slice in the tables → gather → logits
                                      of all ranks (TorchRec), dense parts

Nothing but collectives of torch.distributed goes between ranks. TorchRec's exchange goes over gloo on CPU and NCCL on
CUDA; slices and logits go over gloo, for they start and end in the leader's memory.
"""

from dlrm_factory.ranks.follower import follow
from dlrm_factory.ranks.group import RankGroup
from dlrm_factory.ranks.leader import RankedScorer, StepTimes
from dlrm_factory.ranks.loading import load_rank

__all__ = ["RankGroup", "RankedScorer", "StepTimes", "follow", "load_rank"]

"""One model over several processes: rank 0 leads, sends each rank the ids of its rows, and gets logits.

::

    leader        each rank                     the ranks that score         leader
    FeatureBatch  ids of the rows it holds,     vectors of their samples     logits
      → arrange   of all samples → lookup       from every rank → dense
      → route     → vectors                     parts
               ─►                            ─►                          ─►
            messages                      exchange                    messages

A batch of some samples is scored by the leader alone; of a large one each rank scores its slice. TorchRec plans and
holds the tables; ids are routed here, for the leader has all of them and TorchRec's exchange, made for ranks that each
have their own batch, would first let ranks tell one another how many they send.

Messages go from one process to another over torch.distributed: gloo, and NCCL for vectors between GPUs.
"""

from dlrm_factory.ranks.follower import follow
from dlrm_factory.ranks.group import RankGroup
from dlrm_factory.ranks.leader import RankedScorer, StepTimes
from dlrm_factory.ranks.loading import load_rank

__all__ = ["RankGroup", "RankedScorer", "StepTimes", "follow", "load_rank"]

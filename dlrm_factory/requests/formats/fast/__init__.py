"""Quick readers of the common bodies. What they do not take for certain, they leave to the reference reader.

A quick reader either gives what the reference (`dlrm_factory.requests.body`, then `dlrm_factory.requests.formats`)
gives, or None. It never explains: a body with a mistake is read again by the reference, whose errors are the only ones
that clients see.
"""

from dlrm_factory.requests.formats.fast.gathered import Gathered, GatheringReader
from dlrm_factory.requests.formats.fast.reader import FastReader

__all__ = ["FastReader", "Gathered", "GatheringReader"]

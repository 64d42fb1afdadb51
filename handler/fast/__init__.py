"""Quick readers of the common bodies. What they do not take for certain, they leave to the reference reader.

A quick reader either gives what the reference (`handler.body`, then `handler.shapes`) gives, or None. It never
explains: a body with a mistake is read again by the reference, whose errors are the only ones that clients see.
"""

from handler.fast.gathered import Gathered, GatheringReader
from handler.fast.reader import FastReader

__all__ = ["FastReader", "Gathered", "GatheringReader"]

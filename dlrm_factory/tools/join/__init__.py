"""`dlrm join`: ranks of this host for the groups of a leader on another one. TorchServe is not needed here."""

from dlrm_factory.tools.join.joining import JoinOptions, join_leader

__all__ = ["JoinOptions", "join_leader"]

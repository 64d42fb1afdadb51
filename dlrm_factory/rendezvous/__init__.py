"""How the hosts of one group find each other, before torch.distributed knows of any.

::

    leader's host, rank 0                      every other host, `dlrm join`
    listens on one address, a port a group
                      ◄──────────── connects ──
                      ──── a nonce, and one ──►
                      ◄── HMACs of the secret ►
                      ── model, seal, versions ►   compares
    compares          ◄── the same of its own ──
                      ── host number, or why not ►
                      ── where torch's store is ►  starts its ranks
                      ◄── a beat, again and again ──►   until the group ends, on either side

Messages are JSON, one a line; nothing is unpickled. No module of this room imports torch.
"""

from dlrm_factory.rendezvous.identity import ModelIdentity
from dlrm_factory.rendezvous.leading import Rendezvous
from dlrm_factory.rendezvous.line import BEAT_S, STARTING_S, Line
from dlrm_factory.rendezvous.place import (
    DEFAULT_PORTS,
    MeetingPlace,
    meeting_variables,
    parse_ports,
    read_secret,
    write_secret,
)
from dlrm_factory.rendezvous.proof import prove_as_host, prove_as_leader
from dlrm_factory.rendezvous.waiting import waiting_groups

__all__ = [
    "BEAT_S",
    "DEFAULT_PORTS",
    "STARTING_S",
    "Line",
    "MeetingPlace",
    "ModelIdentity",
    "Rendezvous",
    "meeting_variables",
    "parse_ports",
    "prove_as_host",
    "prove_as_leader",
    "read_secret",
    "waiting_groups",
    "write_secret",
]

"""A model as hosts of tests have it, and a host that knocks."""

from __future__ import annotations

from typing import Any

from dlrm_factory.rendezvous import Line, ModelIdentity, prove_as_host

SECRET = b"a secret of hosts"
IDENTITY = ModelIdentity(model="dlrm", seal="5ea1" * 8, versions={"torch": "2.13.0", "torchrec": "1.8.0"})


def knock(line: Line, identity: ModelIdentity = IDENTITY, secret: bytes = SECRET) -> dict[str, Any]:
    """Answer of the leader to a host."""
    refusal = prove_as_host(line, secret, within_s=5)
    if refusal:
        return {"refused": [refusal]}
    assert ModelIdentity.from_message(line.receive(5)) == IDENTITY
    line.send(**identity.to_message())
    return line.receive(5)

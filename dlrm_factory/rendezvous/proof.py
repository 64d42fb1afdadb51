"""Proof that both ends of a connection have the same secret, by HMAC-SHA256; the secret itself does not cross.

The host proves it first, so that a stranger learns nothing of the leader. What follows on the connection is not
encrypted, and neither is anything that torch sends: the proof keeps out who came by mistake.
"""

from __future__ import annotations

import hmac
import secrets
from typing import Any

from dlrm_factory.rendezvous.line import Line

__all__ = ["PROTOCOL", "prove_as_host", "prove_as_leader"]

# Raised when messages change.
PROTOCOL = 1
_NONCE_BYTES = 32


def prove_as_leader(line: Line, secret: bytes, *, within_s: float) -> str:
    """Why the host at the other end is refused; empty if it has proven the secret, and so have we.

    OSError if it says nothing, or something else, ``within_s`` seconds.
    """
    own = secrets.token_hex(_NONCE_BYTES)
    line.send(protocol=PROTOCOL, nonce=own)
    theirs = line.receive(within_s)
    refusal = _protocol_refusal(theirs, "this host", "the leader")
    if not refusal:
        proof = line.receive(within_s)
        if not _is_proof(proof, secret, "host", own, theirs):
            refusal = "secret: this host has another one than the leader; copy the leader's secret file here"
    if refusal:
        line.send(refused=[refusal])
        return refusal
    line.send(proof=_proof(secret, "leader", str(theirs.get("nonce")), own))
    return ""


def prove_as_host(line: Line, secret: bytes, *, within_s: float) -> str:
    """Why the leader refuses, or is refused; empty if both have proven the secret. OSError as `prove_as_leader`."""
    theirs = line.receive(within_s)
    own = secrets.token_hex(_NONCE_BYTES)
    line.send(protocol=PROTOCOL, nonce=own)
    refusal = _protocol_refusal(theirs, "the leader", "this host")
    if refusal:
        return refusal
    line.send(proof=_proof(secret, "host", str(theirs.get("nonce")), own))
    answer = line.receive(within_s)
    if "refused" in answer:
        return "; ".join(str(each) for each in answer["refused"])
    if not _is_proof(answer, secret, "leader", own, theirs):
        return "secret: who listens there does not know it; is that the leader?"
    return ""


def _protocol_refusal(message: dict[str, Any], one: str, other: str) -> str:
    found = message.get("protocol")
    if found == PROTOCOL:
        return ""
    return (
        f"hand-shake: {one} has version {found!r}, {other} {PROTOCOL}; make the archive and join with the same "
        "release of torchserve-dlrm"
    )


def _proof(secret: bytes, role: str, challenge: str, own: str) -> str:
    """``challenge``: the other end's nonce. The role keeps one end's proof from being sent back to it."""
    return hmac.new(secret, f"{role} {challenge} {own}".encode(), "sha256").hexdigest()


def _is_proof(message: dict[str, Any], secret: bytes, role: str, own: str, theirs: dict[str, Any]) -> bool:
    expected = _proof(secret, role, own, str(theirs.get("nonce")))
    return hmac.compare_digest(expected.encode(), str(message.get("proof")).encode())

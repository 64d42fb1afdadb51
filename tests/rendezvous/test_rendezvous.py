"""The hand-shake of a leader with hosts that fit, and with all others."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from support.rendezvous import IDENTITY, SECRET, knock

from dlrm_factory.errors import GroupError, ServingError
from dlrm_factory.rendezvous import (
    Line,
    MeetingPlace,
    ModelIdentity,
    Rendezvous,
    leading,
    prove_as_host,
    waiting_groups,
)

Lead = Callable[..., Rendezvous]
Connect = Callable[..., Line]


def within(seconds: float, condition: Callable[[], object]) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return bool(condition())


def heard(line: Line, key: str) -> Any:
    """``key`` of the next message that has it."""
    while key not in (message := line.receive(5)):
        pass
    return message[key]


class Losses:
    def __init__(self) -> None:
        self.found: list[GroupError] = []

    def __call__(self, error: GroupError) -> None:
        self.found.append(error)


def test_hosts_get_their_numbers_again_and_are_told_their_ranks(lead: Lead, connect: Connect) -> None:
    first = lead(hosts=3, world_size=6)
    assert knock(connect("127.0.0.3")) == {"host": 1}
    assert first.missing == {2: ""}
    assert knock(connect("127.0.0.2")) == {"host": 2}
    first.wait(5)
    first.close()
    again = lead(hosts=3, world_size=6)
    assert again.missing == {1: "127.0.0.3", 2: "127.0.0.2"}
    two, one = connect("127.0.0.2"), connect("127.0.0.3")
    assert [knock(two), knock(one)] == [{"host": 2}, {"host": 1}]
    again.wait(5)
    again.start(4711, Losses())
    expected = {"world_size": 6, "ranks": 2, "store_port": 4711}
    assert heard(one, "start") == expected | {"first_rank": 2}
    assert heard(two, "start") == expected | {"first_rank": 4}
    assert knock(connect("127.0.0.4")) == {"full": 3}


def test_the_missing_host_is_named(lead: Lead, connect: Connect, caplog: pytest.LogCaptureFixture) -> None:
    leader = lead(hosts=3, world_size=3)
    knock(connect("127.0.0.3"))
    with pytest.raises(GroupError, match=r'Waiting for host 2 of 3, .* at 127\.0\.0\.1:\d+ \(model "dlrm"\)'):
        leader.wait(0.05)
    assert waiting_groups("dlrm") == [{"port": leader.port, "missing": [{"host": 2, "address": None}]}]
    assert waiting_groups("other") == []
    # A host that goes again before the group is complete is waited for again.
    late = connect("127.0.0.2")
    knock(late)
    late.close()
    assert within(5, lambda: "host 2 (127.0.0.2) has left" in caplog.text)
    assert leader.missing == {2: "127.0.0.2"}
    knock(connect("127.0.0.2"))
    leader.wait(5)
    assert waiting_groups("dlrm") == []


DIFFERENT = {
    "secret": ({}, b"another secret of hosts", "secret: this host has another one than the leader"),
    "model": ({"model": "ads"}, SECRET, 'model: the leader serves "dlrm", this host has "ads"'),
    "seal": (
        {"seal": "0" * 32},
        SECRET,
        "seal: the leader's archive is 5ea15ea15ea1, this host's 000000000000",
    ),
    "version": (
        {"versions": {"torch": "2.12.0", "torchrec": "1.8.0"}},
        SECRET,
        "torch: the leader has 2.13.0, this host 2.12.0",
    ),
    "package": ({"versions": {"torch": "2.13.0"}}, SECRET, "torchrec: the leader has 1.8.0, this host none"),
}


@pytest.mark.parametrize("what", DIFFERENT)
def test_a_host_that_differs_is_refused_by_name_on_both_sides(
    lead: Lead, connect: Connect, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    changes, secret, reason = DIFFERENT[what]
    leader = lead()
    theirs = ModelIdentity(
        **({"model": "dlrm", "seal": IDENTITY.seal, "versions": IDENTITY.versions} | changes)
    )
    (refusal,) = knock(connect(), theirs, secret)["refused"]
    assert refusal.startswith(reason)
    assert within(5, lambda: f"The host at 127.0.0.2 is refused: {reason}" in caplog.text)
    # It tries again, of which one line tells.
    knock(connect(), theirs, secret)
    assert caplog.text.count(reason) == 1
    assert leader.missing == {1: ""}
    assert knock(connect()) == {"host": 1}


STRANGERS = {
    "says nothing": (b"", "nothing came for"),
    "sends too much": (b"[" * 200_000, "it sent a message of more than 65536 bytes"),
    "speaks HTTP": (b"GET / HTTP/1.1\r\n\r\n", "it sent what is not JSON"),
    "sends a list": (b"[]\n", "it sent what is no message"),
    "nests deeply": (b"[" * 60_000 + b"\n", "it sent what is not JSON"),
}


@pytest.mark.parametrize("what", STRANGERS)
def test_strangers_keep_nobody_out(
    lead: Lead,
    connect: Connect,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    what: str,
) -> None:
    monkeypatch.setattr(leading, "_HAND_SHAKE_S", 0.2)
    lead()
    sent, reason = STRANGERS[what]
    stranger = connect()
    stranger._connection.sendall(sent)
    assert within(5, lambda: f"is no host of the group: {reason}" in caplog.text)
    assert knock(connect()) == {"host": 1}


def test_another_release_is_told_so(lead: Lead, connect: Connect) -> None:
    lead()
    line = connect()
    assert line.receive(5)["protocol"] == 1
    line.send(protocol=2, nonce="")
    assert line.receive(5)["refused"][0].startswith("hand-shake: this host has version 2, the leader 1")


def test_a_leader_without_the_secret_is_not_believed(place: MeetingPlace, connect: Connect) -> None:
    listener = leading._listen(place)

    def pretend() -> None:
        line = Line(listener.accept()[0])
        line.send(protocol=1, nonce="00")
        line.receive(5)
        line.receive(5)
        line.send(proof="0" * 64)
        line.close()

    thread = threading.Thread(target=pretend)
    thread.start()
    assert prove_as_host(connect(), SECRET, within_s=5).startswith(
        "secret: who listens there does not know it"
    )
    thread.join()
    listener.close()


def test_a_host_that_ends_its_part_or_falls_silent_loses_the_group(lead: Lead, connect: Connect) -> None:
    for how in ("says so", "closes", "is silent"):
        leader, host, losses = lead(), connect(), Losses()
        knock(host)
        leader.wait(5)
        leader.start(4711, losses)
        leader.serve(1.0, losses)
        assert heard(host, "silence_s") == 1.0
        host.send(beat=True)
        assert heard(host, "beat")
        if how == "says so":
            host.send(lost="rank 1 ended by signal 9")
        elif how == "closes":
            host.close()
        assert within(5, lambda losses=losses: losses.found), how
        (error,) = losses.found
        reason = {
            "says so": "rank 1 ended by signal 9",
            "closes": "it closed",
            "is silent": "it was not heard of",
        }
        assert str(error).startswith(f"host 1 (127.0.0.2) is gone ({reason[how]}")
        # The next leader of this host finds its port free, although this one has not ended.
        again = lead()
        assert again.port == leader.port
        again.close()
        leader.close()


def test_a_host_that_leaves_before_the_start_is_not_forgotten(lead: Lead, connect: Connect) -> None:
    leader, host, losses = lead(), connect(), Losses()
    knock(host)
    leader.wait(5)
    host.close()
    assert within(5, lambda: leader._lost)
    leader.start(4711, losses)
    assert len(losses.found) == 1


def test_each_group_takes_the_next_port(lead: Lead, place: MeetingPlace) -> None:
    leader = lead()
    with pytest.raises(ServingError, match=f"all of the ports 127.0.0.1:{leader.port} are taken"):
        lead()
    with pytest.raises(ServingError, match=r"192\.0\.2\.7 is not an address of this machine"):
        Rendezvous(
            MeetingPlace(address="192.0.2.7", ports=place.ports, secret=SECRET),
            IDENTITY,
            world_size=2,
            hosts=2,
        )


def test_messages_are_json(lead: Lead, connect: Connect, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    lead()
    line = connect()
    line.receive(5)
    line._connection.sendall(json.dumps({"protocol": 1, "nonce": 7}).encode()[:5])
    time.sleep(0.05)
    # The rest of a message may come later.
    line._connection.sendall(json.dumps({"protocol": 1, "nonce": 7}).encode()[5:] + b"\n")
    line.send(proof="no")
    assert line.receive(5)["refused"]

"""`Rendezvous`: the leader's side."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dlrm_factory.errors import GroupError, ServingError
from dlrm_factory.rendezvous.identity import ModelIdentity
from dlrm_factory.rendezvous.line import BEAT_S, STARTING_S, Line
from dlrm_factory.rendezvous.place import MeetingPlace
from dlrm_factory.rendezvous.proof import prove_as_leader
from dlrm_factory.rendezvous.waiting import WaitingNotes

__all__ = ["Rendezvous"]

logger = logging.getLogger(__name__)

_HAND_SHAKE_S = 5.0
_REMIND_S = 10.0
_MAX_STRANGERS = 16
_BACKLOG = 32


@dataclass(frozen=True, kw_only=True)
class _Host:
    number: int
    address: str
    line: Line

    def __str__(self) -> str:
        return f"host {self.number} ({self.address})"


class Rendezvous:
    """Listens for the other hosts of one group, for as long as the group is there, and notices when one goes.

    Hosts have numbers from 1 on; the leader's is 0. A host gets the number that its address had before, if it is free.
    """

    def __init__(self, place: MeetingPlace, identity: ModelIdentity, *, world_size: int, hosts: int) -> None:
        """ServingError if the address is not this machine's, or all ports are taken."""
        self.address = place.address
        self._listener = _listen(place)
        self.port = int(self._listener.getsockname()[1])
        self._place = place
        self._identity = identity
        self._world_size = world_size
        self._wanted = range(1, hosts)
        self._present: dict[int, _Host] = {}
        self._notes = WaitingNotes(identity.model, place.address, self.port)
        self._before = self._notes.addresses()
        self._changed = threading.Condition()
        self._started = False
        self._lost: GroupError | None = None
        self._on_loss: Callable[[GroupError], None] = lambda _: None
        self._silence_s = STARTING_S
        self._strangers = threading.BoundedSemaphore(_MAX_STRANGERS)
        self._told: set[str] = set()
        self._ended = threading.Event()
        for target in (self._accept, self._beat):
            threading.Thread(target=target, daemon=True, name=f"rendezvous {target.__name__}").start()

    @property
    def missing(self) -> dict[int, str]:
        """Numbers of the hosts that are not there, and the addresses that they had before, else ``""``."""
        return {n: self._before.get(n, "") for n in self._wanted if n not in self._present}

    def wait(self, within_s: float | None = None) -> None:
        """Returns once all hosts are there; says every 10 s which are missing.

        GroupError if they are not ``within_s`` seconds.
        """
        end = None if within_s is None else time.monotonic() + within_s
        with self._changed:
            while self.missing:
                self._notes.wait_for(self.missing)
                logger.warning("%s", self._waits_for())
                left = _REMIND_S if end is None else min(_REMIND_S, end - time.monotonic())
                if left <= 0:
                    raise GroupError(self._waits_for())
                self._changed.wait(left)
            self._started = True
        self._notes.clear()
        self._notes.keep_addresses({number: host.address for number, host in self._present.items()})

    def start(self, store_port: int, on_loss: Callable[[GroupError], None]) -> None:
        """Let the other hosts start their ranks, which find torch's store at ``store_port``.

        ``on_loss``: called once, in another thread, when a host ends its part or is not heard of.
        """
        local = self._world_size // (len(self._wanted) + 1)
        self._on_loss = on_loss
        for number, host in sorted(self._present.items()):
            with contextlib.suppress(OSError):  # whoever reads from it learns of that
                host.line.send(
                    start={
                        "world_size": self._world_size,
                        "first_rank": number * local,
                        "ranks": local,
                        "store_port": store_port,
                    }
                )
        if self._lost is not None:
            on_loss(self._lost)

    def serve(self, silence_s: float, on_loss: Callable[[GroupError], None]) -> None:
        """From now on a host that is silent for ``silence_s`` seconds counts as gone, on both sides."""
        self._silence_s, self._on_loss = silence_s, on_loss
        for host in list(self._present.values()):
            with contextlib.suppress(OSError):
                host.line.send(silence_s=silence_s)

    def close(self) -> None:
        """Let all hosts go."""
        self._ended.set()
        _close(self._listener)
        self._notes.clear()
        for host in list(self._present.values()):
            host.line.close()

    def _waits_for(self) -> str:
        hosts = [f"{n}{f' (before at {address})' if address else ''}" for n, address in self.missing.items()]
        return (
            f"Waiting for host{'s' if len(hosts) > 1 else ''} {', '.join(hosts)} of {len(self._wanted) + 1}, which "
            f'`dlrm join` brings, at {self.address}:{self.port} (model "{self._identity.model}")'
        )

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            if not self._strangers.acquire(blocking=False):
                connection.close()
                continue
            threading.Thread(target=self._receive, args=(connection,), daemon=True, name="rendezvous").start()

    def _receive(self, connection: socket.socket) -> None:
        line = Line(connection)
        try:
            host = self._admit(line)
        except OSError as error:
            self._tell_once(f"A connection from {_address(line)} is no host of the group: {error}")
            host = None
        finally:
            self._strangers.release()
        if host is None:
            line.close()
            return
        reason = self._listen_to(host)
        line.close()
        self._drop(host, reason)

    def _admit(self, line: Line) -> _Host | None:
        """The host at the other end, with a number; None if it is refused."""
        address = line.peer_address
        refusal = prove_as_leader(line, self._place.secret, within_s=_HAND_SHAKE_S)
        if refusal:
            self._tell_once(f"The host at {address} is refused: {refusal}")
            return None
        hosts = len(self._wanted) + 1
        line.send(**self._identity.to_message(), hosts=hosts, world_size=self._world_size)
        theirs = ModelIdentity.from_message(line.receive(_HAND_SHAKE_S))
        refusals = self._identity.differences(theirs)
        with self._changed:
            number = None if refusals or self._started else self._number_for(address)
            if number is not None:
                host = self._present[number] = _Host(number=number, address=address, line=line)
                self._changed.notify_all()
        if number is not None:
            line.send(host=number)
            logger.info("%s is there", host)
            return host
        if refusals:
            self._tell_once(f"The host at {address} is refused: {'; '.join(refusals)}")
            line.send(refused=refusals)
        else:
            line.send(full=hosts)
        return None

    def _number_for(self, address: str) -> int | None:
        """The number that a host at ``address`` had before, else a free one; None if there is none."""
        missing = self.missing
        known = [number for number, before in missing.items() if before == address]
        unknown = [number for number, before in missing.items() if not before]
        return next(iter([*known, *unknown, *missing]), None)

    def _listen_to(self, host: _Host) -> str:
        """Why ``host`` has gone; returns when it has."""
        heard = time.monotonic()
        while True:
            try:
                message = host.line.receive(BEAT_S)
                heard = time.monotonic()
                if "lost" in message:
                    return str(message["lost"])
            except TimeoutError:
                silent = time.monotonic() - heard
                if silent > self._silence_s:
                    return f"it was not heard of for {silent:.0f} s"
            except OSError as error:
                return str(error)

    def _drop(self, host: _Host, reason: str) -> None:
        with self._changed:
            self._present.pop(host.number, None)
            if not self._started:
                logger.warning("%s has left before the group was complete: %s", host, reason)
                self._before[host.number] = host.address
                self._changed.notify_all()
                return
            if self._lost is not None:
                return
            self._lost = GroupError(f"{host} is gone ({reason}); send the request again")
        # Nobody shall find this group any more.
        _close(self._listener)
        self._on_loss(self._lost)

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_S):
            for host in list(self._present.values()):
                with contextlib.suppress(OSError):
                    host.line.send(beat=True)

    def _tell_once(self, text: str) -> None:
        """Hosts that are refused try again and again."""
        if text not in self._told and len(self._told) < 1000:
            self._told.add(text)
            logger.warning("%s", text)


def _close(listener: socket.socket) -> None:
    with contextlib.suppress(OSError):  # closed before; closing alone leaves a thread in `accept`
        listener.shutdown(socket.SHUT_RDWR)
    listener.close()


def _address(line: Line) -> str:
    try:
        return line.peer_address
    except OSError:
        return "an address that is gone"


def _listen(place: MeetingPlace) -> socket.socket:
    family: Any = socket.AF_INET6 if ":" in place.address else socket.AF_INET
    for port in place.ports:
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((place.address, port))
            listener.listen(_BACKLOG)
        except OSError as error:
            listener.close()
            if error.errno == 99:
                raise ServingError(
                    f"{place.address} is not an address of this machine; give one that other hosts reach with "
                    "--group-address"
                ) from None
            continue
        return listener
    raise ServingError(
        f"all of the ports {place.text} are taken, each by a group or by someone else; give more with --group-ports"
    )

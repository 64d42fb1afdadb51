"""`join_leader`: wait for a leader, serve ranks for each of its groups, and wait again."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dlrm_factory.errors import ArchiveError, ServingError, WeightsError
from dlrm_factory.rendezvous import (
    BEAT_S,
    DEFAULT_PORTS,
    STARTING_S,
    Line,
    MeetingPlace,
    ModelIdentity,
    parse_ports,
    prove_as_host,
    read_secret,
)
from dlrm_factory.tools.archive.reading import unpacked_weights
from dlrm_factory.tools.join.rank_process import RankProcess
from dlrm_factory.tools.server.store import ServedModel, find_models
from dlrm_factory.weights.seal import read_seal

__all__ = ["JoinOptions", "join_leader"]

_POLL_S = 0.5
# A leader that refuses does so until somebody mends something.
_REFUSED_S = 3.0
_CONNECT_S = 1.5
_HAND_SHAKE_S = 5.0
_LOOK_S = 0.1
# A group that has not come back by then was scaled away, or waits for somebody else.
_SPARE_S = 120.0


@dataclass(frozen=True, kw_only=True)
class JoinOptions:
    """Options of `join_leader`.

    Args:
        leader: address that the leader's host gave as ``--group-address``.
        model_store: folder of the archives.
        models: ``NAME=ARCHIVE`` each, named as on the leader.
        secret_file: a copy of the leader's.
        ports: ``FIRST-LAST``, as on the leader.
        address: of this host, to be used for the group; None for the one that leads to the leader.
    """

    leader: str
    model_store: Path
    models: tuple[str, ...] = ("dlrm=dlrm.mar",)
    secret_file: Path
    ports: str = DEFAULT_PORTS
    address: str | None = None


def join_leader(options: JoinOptions, tell: Callable[[str], None], stop: threading.Event) -> None:
    """Serve ranks of this host until ``stop`` is set; no process is left then.

    Args:
        tell: called with one line at each change.

    ServingError, ArchiveError or WeightsError if an archive, the secret or an option is wrong, before anything is done.
    """
    place = MeetingPlace(
        address=options.leader, ports=parse_ports(options.ports), secret=read_secret(options.secret_file)
    )
    models = find_models(options.model_store, options.models)
    with contextlib.ExitStack() as stack:
        joined = {model.name: stack.enter_context(_unpacked(model)) for model in models}
        _Joiner(joined, place, options.address, tell, stop).run()


@dataclass(frozen=True, kw_only=True)
class _JoinedModel:
    identity: ModelIdentity
    folder: Path


@contextlib.contextmanager
def _unpacked(model: ServedModel) -> Iterator[_JoinedModel]:
    try:
        with unpacked_weights(model.path) as folder:
            seal = read_seal(folder)
            seal.check(folder)
            seal.check_names(folder, code_only=True)
            yield _JoinedModel(identity=ModelIdentity.of(folder, model.name), folder=folder)
    except (ArchiveError, WeightsError) as error:
        raise ServingError(f'model "{model.name}" cannot be joined: {error}') from None


class _Joiner:
    """A thread for each port that a group of the leader may have."""

    def __init__(
        self,
        models: Mapping[str, _JoinedModel],
        place: MeetingPlace,
        address: str | None,
        tell: Callable[[str], None],
        stop: threading.Event,
    ) -> None:
        self._models = models
        self._place = place
        self._source = None if address is None else (address, 0)
        self._tell = tell
        self._stop = stop
        self._lock = threading.Lock()
        self._told: dict[int, str] = {}
        self._groups = 0
        # Ranks that have imported torch while their leader starts anew.
        self._spare: dict[str, list[RankProcess]] = {name: [] for name in models}

    def run(self) -> None:
        threads = [
            threading.Thread(target=self._watch, args=(port,), name=f"port {port}")
            for port in self._place.ports
        ]
        self._tell(self._waiting)
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    @property
    def _waiting(self) -> str:
        return f"waiting for a leader at {self._place.text} ({_named(self._models)})"

    def _watch(self, port: int) -> None:
        pause = 0.0
        while not self._stop.wait(pause):
            pause = _POLL_S
            self._drop_spares(_SPARE_S)
            try:
                connection = socket.create_connection(
                    (self._place.address, port), timeout=_CONNECT_S, source_address=self._source
                )
            except OSError:
                continue
            line = Line(connection)
            try:
                self._visit(port, line)
            except OSError as error:
                self._tell_once(port, f"no leader at {self._place.address}:{port}: {error}")
                pause = _REFUSED_S
            except (ArithmeticError, KeyError, TypeError, ValueError) as error:
                self._tell_once(port, f"no leader at {self._place.address}:{port}: it said {error!r}")
                pause = _REFUSED_S
            except _Refused as refused:
                self._tell_once(port, f"refused at {self._place.address}:{port}: {refused}")
                pause = _REFUSED_S
            finally:
                line.close()
        self._drop_spares(0.0)

    def _visit(self, port: int, line: Line) -> None:
        """OSError if no leader answers; `_Refused` if it does not want this host, or this host not it."""
        refusal = prove_as_host(line, self._place.secret, within_s=_HAND_SHAKE_S)
        if refusal:
            raise _Refused(refusal)
        offer = line.receive(_HAND_SHAKE_S)
        model = self._models.get(str(offer.get("model")))
        line.send(**self._identity(model).to_message())
        answer = line.receive(_HAND_SHAKE_S)
        if "refused" in answer:
            raise _Refused("; ".join(str(each) for each in answer["refused"]))
        if "full" in answer or model is None:
            raise _Refused(f"the group has its {offer.get('hosts')} hosts; waiting in case one goes")
        self._told.pop(port, None)
        name = f"{self._place.address}:{port} as host {answer.get('host')} of {offer.get('hosts')}"
        self._tell(f"admitted at {name} (model {model.identity.model})")
        self._take_part(line, model, name, int(offer["world_size"]) // int(offer["hosts"]))

    def _identity(self, model: _JoinedModel | None) -> ModelIdentity:
        if model is not None:
            return model.identity
        known = next(iter(self._models.values())).identity
        return ModelIdentity(model=", ".join(self._models), seal="", versions=known.versions)

    def _take_part(self, line: Line, model: _JoinedModel, name: str, count: int) -> None:
        """Serve ``count`` ranks in one group, until it ends."""
        ranks = self._take(model, count)
        with self._lock:
            self._groups += 1
        try:
            reason = _Part(
                line, ranks, self._place.address, lambda text: self._tell(f"{text} at {name}")
            ).serve(self._stop)
        except OSError as error:
            reason = str(error)
        finally:
            line.close()
            for rank in ranks:
                rank.kill()
        with self._lock:
            self._groups -= 1
            idle = not self._groups
        if self._stop.is_set():
            self._tell(f"left {name}")
            return
        self._tell(f"the group at {name} has ended: {reason}" + (f"; {self._waiting}" if idle else ""))
        made = [RankProcess(model.folder) for _ in range(count)]
        with self._lock:
            self._spare[model.identity.model] += made

    def _take(self, model: _JoinedModel, count: int) -> list[RankProcess]:
        with self._lock:
            spare = self._spare[model.identity.model]
            found = [rank for rank in spare[:count] if rank.lives()]
            del spare[:count]
        return found + [RankProcess(model.folder) for _ in range(count - len(found))]

    def _drop_spares(self, older_than_s: float) -> None:
        with self._lock:
            for ranks in self._spare.values():
                while ranks and ranks[0].age_s >= older_than_s:
                    ranks.pop(0).kill()

    def _tell_once(self, port: int, text: str) -> None:
        if self._told.get(port) != text:
            self._told[port] = text
            self._tell(text)


class _Refused(Exception):
    """The leader does not want this host, or this host not that leader."""


class _Part:
    """The ranks of this host in one group, and the connection to its leader."""

    def __init__(
        self, line: Line, ranks: list[RankProcess], leader: str, tell: Callable[[str], None]
    ) -> None:
        self._line = line
        self._ranks = ranks
        self._leader = leader
        self._tell = tell
        self._silence_s = STARTING_S

    def serve(self, stop: threading.Event) -> str:
        """Why the group has ended; returns when it has. OSError if the leader's connection has."""
        heard, beaten = time.monotonic(), 0.0
        while not stop.is_set():
            if time.monotonic() - beaten >= BEAT_S:
                self._line.send(beat=True)
                beaten = time.monotonic()
            try:
                self._take_message(self._line.receive(_LOOK_S))
                heard = time.monotonic()
            except TimeoutError:
                pass
            if time.monotonic() - heard > self._silence_s:
                return f"its leader was not heard of for {self._silence_s:g} s"
            faults = [fault for rank in self._ranks if (fault := rank.fault(self._silence_s))]
            if faults:
                self._line.send(lost=faults[0])
                return faults[0]
        self._line.send(lost="`dlrm join` was stopped there")
        return ""

    def _take_message(self, message: dict[str, Any]) -> None:
        self._silence_s = float(message.get("silence_s", self._silence_s))
        start = message.get("start")
        if start is None:
            return
        first = int(start["first_rank"])
        for local, rank in enumerate(self._ranks):
            rank.begin(first + local, local, start, leader=self._leader, own_address=self._line.own_address)
        last = first + len(self._ranks) - 1
        self._tell(f"joined with rank{f' {first}' if last == first else f's {first} to {last}'}")


def _named(models: Mapping[str, _JoinedModel]) -> str:
    return ("model " if len(models) == 1 else "models ") + ", ".join(models)

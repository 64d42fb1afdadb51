"""A worker that is a group of ranks: TorchServe starts torchrun, and torchrun one process a rank of this host.

::

    TorchServe ── torchrun ─┬─ rank 0, the leader, which has the requests  ◄──── ranks of other hosts, `dlrm join`
        │                   └─ ranks 1, 2, …, its followers
        └── a connection to each rank

When any of these connections ends, TorchServe answers the worker's batch with 500 and kills torchrun, but not its
ranks. When a rank ends, torchrun starts all of them anew, beside those of the worker that TorchServe starts. Neither
fits a group, which ends as a whole and after its answers. So

- each follower hands its connection to the leader, with whom it ends;
- the kernel kills every rank when torchrun ends, one that stands still too;
- whoever ends the group kills torchrun.

A host that has the leader alone needs no torchrun: the worker is the leader.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from datetime import timedelta
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist

from dlrm_factory.errors import GroupError
from dlrm_factory.host.process import TEMPORARY_FAILURE, end_with_parent, process_state
from dlrm_factory.ranks import RankedScorer, RankGroup, follow, load_rank
from dlrm_factory.ranks.world import connect_store, host_store_path, listen_store, use_interface
from dlrm_factory.rendezvous import MeetingPlace, ModelIdentity, Rendezvous, waiting_groups
from dlrm_factory.requests.answers import Answer, answer_group_lost
from dlrm_factory.scorer import Scorer
from dlrm_factory.weights.sealed import SealedWeights
from handler.calls import are_predictions_by_http
from handler.connection import FrontEndWatch, hand_over_path, send_connection
from handler.wire import observers_of

__all__ = ["WorkerGroup", "hosts_of", "in_group"]

logger = logging.getLogger(__name__)

_PROTOCOL = "ts.protocol.otf_message_handler"
_NOBODY = "none, for the group of ranks is lost (model_log.log says why)"
# For the answers of a lost group, where nothing says when they have left.
_ANSWERS_LEAVE_S = 1.0
# Between the end of the leader's connection, by which TorchServe gives up the worker, and that of the others.
_LAST_READ_S = 0.1
_HAND_OVER_S = 30.0
_HOSTS_COME = timedelta(days=3650)
# Keys of the store of this host's ranks.
_LEADER, _STORE = "leader", "store"
# A leader that has lost a rank ends within `_ANSWERS_LEAVE_S`, unless it stands still.
_LEADER_ENDS_S = 3.0
_POLL_S = 0.02
_WATCH_S = 0.5


def hosts_of(config: Mapping[str, Any] | None) -> int:
    """Hosts of a group, as the archive's model-config.yaml says."""
    return int((config or {}).get("hosts", 1))


def in_group(hosts: int = 1) -> bool:
    """Return True if this process is one of several ranks."""
    return hosts * int(os.environ.get("WORLD_SIZE", "1")) > 1


class WorkerGroup:
    """The group that this process is a rank of.

    ``connections``: TorchServe's to the other ranks of this host, which the leader holds; file descriptors.
    """

    def __init__(
        self,
        weights: SealedWeights,
        ranks: RankGroup,
        torchrun: int | None,
        *,
        model: str = "dlrm",
        rendezvous: Rendezvous | None = None,
        host_store: dist.Store | None = None,
    ) -> None:
        """Take part in the group whose ranks have found each other.

        Args:
            torchrun: pid of the process that started the ranks of this host; None where that is not torchrun.
            model: its name.
            rendezvous: of a leader with ranks on other hosts.
            host_store: where the ranks of this host find each other; None if this is the only one.
        """
        self.ranks = ranks
        self._weights = weights
        self._torchrun = torchrun
        self._model = model
        self._rendezvous = rendezvous
        self._host_store = host_store
        self._lost = False
        self._leader = os.getpid()
        self.connections: list[int] = []
        # Both stop when the model is loaded.
        self._front_end: FrontEndWatch | None = None
        self._loading: threading.Timer | None = None

    @classmethod
    def join(cls, folder: Path, *, model: str = "dlrm", hosts: int = 1) -> WorkerGroup:
        """Join the group that serves the archive in ``folder``. All ranks of this host call it.

        The ranks of one host talk over the loopback interface. With several ``hosts`` the leader waits until the
        others are there, however long that takes, and all talk over the interface of `MeetingPlace.address`.

        WeightsError if the archive is broken; ServingError if the place is not told, or cannot be used.
        """
        weights = SealedWeights(folder)
        torchrun = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None
        if torchrun is not None:
            end_with_parent(torchrun)
            _check_torchrun()
        front_end = FrontEndWatch(lambda: _end_loading("TorchServe has gone", torchrun))
        local = int(os.environ.setdefault("LOCAL_WORLD_SIZE", "1"))
        host_store = dist.FileStore(str(host_store_path(os.getppid())), local) if local > 1 else None
        store: dist.Store | None = host_store
        rendezvous = loading = None
        if hosts == 1:
            # torch neither encrypts nor authenticates what ranks send.
            use_interface(None)
        else:
            os.environ["WORLD_SIZE"] = str(hosts * local)
            place = MeetingPlace.from_environment()
            use_interface(place.address)
            if int(os.environ.setdefault("RANK", "0")) == 0:
                identity = ModelIdentity.of(folder, model)
                rendezvous = Rendezvous(place, identity, world_size=hosts * local, hosts=hosts)
                rendezvous.wait()
                loading = _limit_loading(weights.declaration.serving.startup_timeout_s, torchrun)
                store = _open_store(rendezvous, host_store, torchrun)
            else:
                assert host_store is not None
                host_store.wait([_STORE], _HOSTS_COME)
                store = connect_store(*json.loads(host_store.get(_STORE)))
        sharding = weights.declaration.sharding
        group = cls(
            weights,
            RankGroup.join(device=sharding.device, timeout_s=sharding.timeout_s, store=store),
            torchrun,
            model=model,
            rendezvous=rendezvous,
            host_store=host_store,
        )
        group._front_end, group._loading = front_end, loading
        # Python's own way out may wait for ranks that are gone.
        atexit.register(group.end)
        group._hand_over()
        return group

    @property
    def waiting_groups(self) -> Callable[[], list[dict[str, Any]]] | None:
        """Gives the groups of the model that wait for hosts; None where groups have but this one."""
        return None if self._rendezvous is None else partial(waiting_groups, self._model)

    @property
    def follows(self) -> bool:
        return self.ranks.rank > 0

    def lead(self) -> RankedScorer:
        """A scorer over all ranks, once each has loaded its part. For rank 0."""
        ranked = RankedScorer(load_rank(self._weights, self.ranks), self.ranks, on_loss=self._lose)

        def on_sigterm(*_: object) -> None:
            ranked.lose(GroupError("another rank has ended; send the request again"))

        if self._torchrun is not None:
            # torchrun's, once it has seen a rank end. What is under way is answered first.
            signal.signal(signal.SIGTERM, on_sigterm)
        if self._rendezvous is not None:
            timeout_s = self.ranks.timeout_s
            # The batch in hand has a deadline of its own, by which its requests are answered.
            self._rendezvous.serve(
                timeout_s, lambda error: ranked.lose_between(error, within_s=2 * timeout_s)
            )
        protocol = sys.modules.get(_PROTOCOL)
        observers = None if protocol is None else observers_of(protocol)
        if observers is not None:
            observers.waits.append(self._end_after_answers)
        # Every rank has printed its pid; TorchServe keeps the last one.
        sys.stdout.write(f"[PID]{os.getpid()}\n")
        sys.stdout.flush()
        return ranked

    def loaded(self) -> None:
        """Take note that the model is ready."""
        if self._front_end is not None:
            self._front_end.stop()
        if self._loading is not None:
            self._loading.cancel()

    def follow(self) -> None:
        """Do what rank 0 says, in a thread that ends the group when it cannot any more. For the other ranks."""
        scorer = load_rank(self._weights, self.ranks)
        torch.set_num_threads(scorer.declaration.serving.threads)
        threading.Thread(target=self._follow, args=(scorer,), daemon=True, name="follow").start()
        threading.Thread(target=self._watch_leader, daemon=True, name="watch").start()
        self.loaded()

    def last_answers(
        self,
        answers: list[Answer],
        headers: Sequence[Mapping[str, Any]],
        ids: MutableMapping[int, str] | None,
    ) -> list[Answer]:
        """Answers of a batch; those that lost the group are made the worker's last.

        TorchServe hands a worker its next batch within microseconds of its answers, and what ends the worker then fails
        that batch too. An answer to a request that nobody has made ends it in between: TorchServe sends the answers
        before it, and then fails the same requests, which have to be errors: these close a connection, and a second
        answer does not reach anybody. A call by gRPC takes no second answer, so batches with one are left as they are.

        Args:
            headers: of each request.
            ids: place in the batch → TorchServe's id of the request; changed.
        """
        if not (self._lost and ids and are_predictions_by_http(headers)):
            return answers
        ids[-1] = _NOBODY
        return [
            answer if answer.status >= HTTPStatus.BAD_REQUEST else answer_group_lost() for answer in answers
        ]

    def end(self) -> NoReturn:
        """End all ranks on this host, this one too, at once; those of other hosts end for it."""
        _end(self._torchrun)

    def _lose(self, error: GroupError) -> None:
        logger.critical("The group of ranks is lost, so this worker ends: %s", error)
        self._lost = True
        timer = threading.Timer(_ANSWERS_LEAVE_S, self.end)
        timer.daemon = True
        timer.start()

    def _end_after_answers(self, connection: socket.socket) -> None:
        """End a lost group once its last answer is written.

        TorchServe would take the end of a follower's connection for that of the worker, and forget an answer that it
        has not yet read from the leader's: so the leader's ends first.
        """
        if not self._lost:
            return
        connection.shutdown(socket.SHUT_RDWR)
        time.sleep(_LAST_READ_S)
        self.end()

    def _follow(self, scorer: Scorer) -> None:
        try:
            follow(scorer, self.ranks, folder=self._weights.folder)
        except GroupError as error:
            logger.error("%s", error)
        except Exception:
            logger.exception("This rank ends")
        give_up = time.monotonic() + _LEADER_ENDS_S
        while time.monotonic() < give_up and process_state(self._leader) not in "ZX":
            time.sleep(_POLL_S)
        self.end()

    def _watch_leader(self) -> None:
        """End the group if its leader is stopped for longer than a rank may be: no collective of its own would tell."""
        stopped_since: float | None = None
        while True:
            time.sleep(_WATCH_S)
            now = time.monotonic()
            if process_state(self._leader) != "T":
                stopped_since = None
                continue
            stopped_since = stopped_since or now
            if now - stopped_since >= self.ranks.timeout_s:
                logger.error("The leader (pid %d) stands still, so its group ends", self._leader)
                self.end()

    def _hand_over(self) -> None:
        """Tell the ranks of this host the leader's pid, and give the leader the connections of its followers."""
        if self._host_store is None:
            return
        if self.follows:
            self._leader = int(self._host_store.get(_LEADER))
            send_connection(hand_over_path(self._leader))
            return
        path = hand_over_path(self._leader)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
            path.unlink(missing_ok=True)
            receiver.bind(str(path))
            try:
                receiver.settimeout(_HAND_OVER_S)
                self._host_store.set(_LEADER, str(self._leader))
                for _ in range(1, int(os.environ["LOCAL_WORLD_SIZE"])):
                    self.connections += socket.recv_fds(receiver, 1, 1)[1]
            except OSError as error:
                logger.warning("A rank's end will fail its batch with 500, not 503: %s", error)
            finally:
                path.unlink(missing_ok=True)


def _open_store(rendezvous: Rendezvous, host_store: dist.Store | None, torchrun: int | None) -> dist.Store:
    """The store of all ranks, of which those of this host and of the others are told."""
    store = listen_store(rendezvous.address)
    if host_store is not None:
        host_store.set(_STORE, json.dumps([rendezvous.address, store.port]))
    rendezvous.start(store.port, lambda error: _end_loading(str(error), torchrun))
    return store


def _limit_loading(seconds: float, torchrun: int | None) -> threading.Timer:
    """End the group if it has not loaded in time. TorchServe cannot: it does not know when all hosts are there."""
    reason = f"it was not loaded within {seconds:g} s (serving.startup_timeout_s)"
    timer = threading.Timer(seconds, _end_loading, args=(reason, torchrun))
    timer.daemon = True
    timer.start()
    return timer


def _end(torchrun: int | None) -> NoReturn:
    if torchrun is not None:
        host_store_path(torchrun).unlink(missing_ok=True)
        if os.getppid() == torchrun:
            os.kill(torchrun, signal.SIGKILL)
    os._exit(TEMPORARY_FAILURE)


def _end_loading(reason: str, torchrun: int | None) -> NoReturn:
    logger.error("The group is lost before it is ready, so this worker ends: %s", reason)
    _end(torchrun)


def _check_torchrun() -> None:
    """Warn of a torchrun that listens on all interfaces: whoever reaches its store can run code here."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" and os.environ.get("RANK") == "0":
        logger.warning(
            "torchrun listens on all interfaces, and believes whoever connects. Start TorchServe by `dlrm serve`, or "
            "with PET_RDZV_CONF and TORCH_DISABLE_SHARE_RDZV_TCP_STORE as docs/scale-out.md says"
        )
